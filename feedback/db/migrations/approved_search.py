"""Defines how approved answers are found by full-text search, and which ones are no longer."""

from typing import TYPE_CHECKING

from feedback.db.migrations.append_only import forbid_updates

if TYPE_CHECKING:
    from sqlite_utils import Database


def m008_answers_found(db: "Database") -> None:
    """Find approved answers by their own words too, not only by those of their question."""
    db.execute("drop table approved_fts")
    db.execute("drop trigger approved_found")
    db.execute("""
        create virtual table approved_fts
        using fts5 (approved_id unindexed, question, answer, tokenize = 'porter unicode61')""")
    db.execute("""
        create trigger approved_found after insert on approved begin
            insert into approved_fts (approved_id, question, answer)
            values (new.id, new.question, new.answer);
        end""")
    db.execute("""
        insert into approved_fts (approved_id, question, answer)
        select id, question, answer from approved""")


def m010_cut_answers(db: "Database") -> None:
    """Withdraw the answers that were approved as they were given although they lack their end."""
    db.execute("""
        insert or ignore into withdrawal (approved_id, reason, created_at)
        select a.id, 'the answer was cut short', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
        from approved a join message m on m.id = a.message_id
            join speaker s on s.message_id = m.id
        where s.finish <> 'stop' and trim(a.answer) = trim(m.content)""")


def m011_unspaced_scripts(db: "Database") -> None:
    """Find approved answers in scripts that set no spaces between words: by any three characters.

    Thai to Khmer, kana, and Chinese characters; texts in other scripts are not indexed again.
    """
    unspaced = "*[\u0e00-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]*"
    db.execute("""
        create virtual table approved_trigrams
        using fts5 (approved_id unindexed, question, answer, tokenize = 'trigram')""")
    db.execute(f"""
        create trigger approved_unspaced_found after insert on approved
        when new.question || new.answer glob '{unspaced}' begin
            insert into approved_trigrams (approved_id, question, answer)
            values (new.id, new.question, new.answer);
        end""")
    db.execute("""
        create trigger approved_unspaced_forgotten after delete on approved begin
            delete from approved_trigrams where approved_id = old.id;
        end""")
    db.execute(f"""
        insert into approved_trigrams (approved_id, question, answer)
        select id, question, answer from approved where question || answer glob '{unspaced}'""")


def m017_approved_vectors(db: "Database") -> None:
    """Keep vectors of approved questions and of their answers, in float16, by what made them.

    They have numbers of their own, so that a process reads only those that have come since.
    """
    db.execute("""
        create table approved_vector (
            number integer primary key autoincrement,
            approved_id text not null,
            embedder text not null,
            question blob not null,
            answer blob not null,
            unique (approved_id, embedder)
        ) strict""")
    db.execute("""
        create trigger approved_vector_forgotten after delete on approved begin
            delete from approved_vector where approved_id = old.id;
        end""")
    forbid_updates(db, "approved_vector")
