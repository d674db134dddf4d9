"""Defines the tables as numbered migrations. A change of schema is a new one, never an edit.

Rows are events: they are inserted, read, and (by an erasure) deleted, never updated; triggers hold
that. What came later wins, and "later" is the order of insertion (``rowid``), not a clock's.
What would take a walk over all events to find, as the review queue, is kept up by triggers.

sqlite-utils applies them. It is imported by those that migrate only: it imports pandas where that
is installed, 0.7 s that no other start should pay.
"""

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database, Migrations

Migration = Callable[["Database"], None]
MIGRATIONS: list[Migration] = []
"""All steps in their order; the database records each under its function's name."""


def load_migrations() -> "Migrations":
    """Return the steps as sqlite-utils applies them."""
    from sqlite_utils import Migrations

    migrations = Migrations("feedback")
    for step in MIGRATIONS:
        migrations(name=step.__name__)(step)
    return migrations


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the database up to date, whole or not at all; processes that start together queue."""
    from sqlite_utils import Database

    migrations, database = load_migrations(), Database(connection)
    connection.execute("begin immediate")
    try:
        migrations.apply(database)
        connection.execute(f"pragma user_version = {len(migrations.applied(database))}")
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _migration(step: Migration) -> Migration:
    """Add a step to those that are applied."""
    MIGRATIONS.append(step)
    return step


def _forbid_updates(db: "Database", *tables: str) -> None:
    """Have every update of these tables refused from now on."""
    for table in tables:
        db.execute(
            f"create trigger {table}_for_ever before update on {table} "
            f"begin select raise(abort, 'rows of {table} are never updated'); end"
        )


@_migration
def m001_conversations(db: "Database") -> None:
    """Add conversations, trees of messages: a retry is a sibling answer, an edit a sibling turn."""
    db.execute("""
        create table conversation (
            id text primary key,
            person text not null,
            title text not null,
            created_at text not null
        ) strict""")
    db.execute("""
        create table message (
            id text primary key,
            conversation_id text not null references conversation (id),
            parent_id text references message (id),
            role text not null check (role in ('user', 'assistant')),
            content text not null,
            created_at text not null
        ) strict""")
    db.execute("""
        create table speaker (
            message_id text primary key references message (id),
            adapter text not null,
            base text not null,
            base_revision text,
            system_prompt text not null,
            exemplars text not null check (json_valid(exemplars)),
            sampling text not null check (json_valid(sampling)),
            source text not null check (source in ('model', 'approved')),
            prompt_tokens integer not null,
            completion_tokens integer not null,
            first_token_ms real,
            total_ms real,
            finish text not null check (finish in ('stop', 'length', 'cancelled', 'error'))
        ) strict""")
    db.execute("create index conversation_person on conversation (person)")
    db.execute("create index message_conversation on message (conversation_id)")
    db.execute("create index message_parent on message (parent_id)")
    _forbid_updates(db, "conversation", "message", "speaker")


@_migration
def m002_feedback(db: "Database") -> None:
    """Add feedback of people on answers, and decisions of reviewers."""
    db.execute("""
        create table feedback (
            id text primary key,
            message_id text not null references message (id),
            person text not null,
            kind text not null check (kind in ('thumb', 'edit', 'choice', 'comment', 'signal')),
            value text not null check (json_valid(value)),
            idempotency_key text,
            created_at text not null,
            unique (person, idempotency_key)
        ) strict""")
    db.execute("""
        create table review (
            id text primary key,
            message_id text not null references message (id),
            reviewer text not null,
            action text not null check (action in ('approve', 'correct', 'reject')),
            answer text,
            note text not null,
            feedback_id text references feedback (id),
            created_at text not null
        ) strict""")
    db.execute("create index feedback_message on feedback (message_id)")
    db.execute("create index feedback_kind on feedback (kind)")
    db.execute("create index review_message on review (message_id)")
    _forbid_updates(db, "feedback", "review")


@_migration
def m003_approved(db: "Database") -> None:
    """Add approved answers, found by their question. The index keeps its own copy of the question,
    because an index over a table's rowids would not survive a VACUUM."""
    db.execute("""
        create table approved (
            id text primary key,
            review_id text not null references review (id),
            message_id text not null references message (id),
            question text not null,
            question_key text not null,
            answer text not null,
            created_at text not null
        ) strict""")
    db.execute("""
        create table withdrawal (
            approved_id text primary key references approved (id),
            reason text not null,
            created_at text not null
        ) strict""")
    db.execute("""
        create table graduation (
            approved_id text not null references approved (id),
            adapter text not null,
            created_at text not null,
            primary key (approved_id, adapter)
        ) strict""")
    db.execute("create index approved_question on approved (question_key)")
    db.execute("create index approved_message on approved (message_id)")
    db.execute("""
        create virtual table approved_fts
        using fts5 (approved_id unindexed, question, tokenize = 'porter unicode61')""")
    db.execute("""
        create trigger approved_found after insert on approved begin
            insert into approved_fts (approved_id, question) values (new.id, new.question);
        end""")
    db.execute("""
        create trigger approved_forgotten after delete on approved begin
            delete from approved_fts where approved_id = old.id;
        end""")
    _forbid_updates(db, "approved", "withdrawal", "graduation")


@_migration
def m004_split(db: "Database") -> None:
    """Keep the side of the split that a cluster of near-duplicates is on, decided for ever."""
    db.execute("""
        create table split (
            cluster text primary key,
            side text not null check (side in ('train', 'held_out')),
            created_at text not null
        ) strict""")
    db.execute("""
        create table cluster_member (
            item text primary key,
            cluster text not null references split (cluster)
        ) strict""")
    _forbid_updates(db, "split", "cluster_member")


@_migration
def m005_adapters(db: "Database") -> None:
    """Add adapters, promotions, reports and cycles; the newest promotion is the one in service."""
    db.execute("""
        create table adapter (
            id text primary key,
            parent text,
            base text not null,
            base_revision text,
            snapshot text,
            recipe text not null check (json_valid(recipe)),
            lineage text not null check (json_valid(lineage)),
            created_at text not null
        ) strict""")
    db.execute("""
        create table promotion (
            id text primary key,
            adapter text not null references adapter (id),
            "by" text not null check ("by" in ('gate', 'person', 'start')),
            who text not null,
            reason text not null,
            report text,
            created_at text not null
        ) strict""")
    db.execute("""
        create table report (
            id text primary key,
            adapter text not null,
            against text not null,
            verdict text not null,
            reasons text not null check (json_valid(reasons)),
            created_at text not null
        ) strict""")
    db.execute("""
        create table cycle (
            id text primary key,
            snapshot text not null,
            started_at text not null
        ) strict""")
    db.execute("""
        create table cycle_end (
            cycle_id text primary key references cycle (id),
            outcome text not null,
            detail text not null check (json_valid(detail)),
            ended_at text not null
        ) strict""")
    _forbid_updates(db, "adapter", "promotion", "report", "cycle", "cycle_end")


@_migration
def m006_events(db: "Database") -> None:
    """Add events for webhooks, written with the row they are about by whichever process.

    They have numbers of their own, because rowids change in a VACUUM and come again after an
    erasure. A delivery is how far a URL has got.
    """
    db.execute("""
        create table event (
            number integer primary key autoincrement,
            type text not null check (type in ('feedback', 'review', 'promotion')),
            id text not null unique,
            created_at text not null
        ) strict""")
    db.execute("""
        create table delivery (
            url text not null,
            event integer not null,
            delivered_at text not null,
            primary key (url, event)
        ) strict""")
    for table in ("feedback", "review", "promotion"):
        db.execute(f"""
            create trigger {table}_told after insert on {table} begin
                insert into event (type, id, created_at)
                values ('{table}', new.id, new.created_at);
            end""")
    _forbid_updates(db, "event", "delivery")


@_migration
def m007_keys(db: "Database") -> None:
    """Add keys, of which only a hash is kept, and which of them are revoked."""
    db.execute("""
        create table access_key (
            id text primary key,
            hash text not null unique,
            prefix text not null,
            name text not null,
            role text not null check (role in ('user', 'reviewer', 'operator')),
            created_at text not null
        ) strict""")
    db.execute("""
        create table revocation (
            key_id text primary key references access_key (id),
            created_at text not null
        ) strict""")
    _forbid_updates(db, "access_key", "revocation")


@_migration
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


@_migration
def m009_pending(db: "Database") -> None:
    """Keep the review queue and its length, so that neither costs more in a larger store.

    An edit waits until a decision knew of it, or says the same; thumbs down and comments wait until
    anything is decided. The points make an answer's priority: an edit offers the right answer, so
    any edit goes before any number of thumbs.
    """
    db.execute("create index feedback_person on feedback (message_id, person, kind)")
    db.execute("""
        create view waiting_feedback as
        select f.id, f.message_id, f.kind,
            case f.kind when 'edit' then 1000 when 'thumb' then 10 else 1 end as points
        from feedback f left join review r
            on r.rowid = (select max(rowid) from review where message_id = f.message_id)
        where case f.kind
            when 'edit' then r.id is null or (
                f.rowid > coalesce((select rowid from feedback where id = r.feedback_id), 0)
                and json_extract(f.value, '$.text') is not r.answer)
            when 'thumb' then r.id is null and json_extract(f.value, '$.up') = 0
                and f.rowid = (select max(rowid) from feedback
                    where message_id = f.message_id and person = f.person and kind = 'thumb')
            when 'comment' then r.id is null
        end""")
    db.execute("""
        create table pending (
            message_id text primary key,
            priority integer not null
        ) strict, without rowid""")
    db.execute("create index pending_priority on pending (priority desc, message_id)")
    db.execute("create table pending_count (waiting integer not null) strict")
    db.execute("insert into pending_count values (0)")
    for change, step in (("insert", "+ 1"), ("delete", "- 1")):
        db.execute(f"""
            create trigger pending_{change}_counted after {change} on pending begin
                update pending_count set waiting = waiting {step};
            end""")
    for table, change, row in (
        ("feedback", "insert", "new"),
        ("feedback", "delete", "old"),
        ("review", "insert", "new"),
        ("review", "delete", "old"),
    ):
        db.execute(f"""
            create trigger {table}_{change}_queued after {change} on {table} begin
                delete from pending where message_id = {row}.message_id;
                insert into pending select message_id, sum(points) from waiting_feedback
                where message_id = {row}.message_id group by message_id;
            end""")
    db.execute("""
        insert into pending select message_id, sum(points) from waiting_feedback
        group by message_id""")


@_migration
def m010_cut_answers(db: "Database") -> None:
    """Withdraw the answers that were approved as they were given although they lack their end."""
    db.execute("""
        insert or ignore into withdrawal (approved_id, reason, created_at)
        select a.id, 'the answer was cut short', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
        from approved a join message m on m.id = a.message_id
            join speaker s on s.message_id = m.id
        where s.finish <> 'stop' and trim(a.answer) = trim(m.content)""")


@_migration
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


@_migration
def m012_base_locations(db: "Database") -> None:
    """Keep where the base of each revision was served from last: folders move."""
    db.execute("""
        create table base_location (
            revision text primary key,
            name text not null,
            recorded_at text not null
        ) strict""")


@_migration
def m013_trusted_choices(db: "Database") -> None:
    """Record how answers were made and who is known; let choices wait for a reviewer.

    Of an old answer only that it was bent can be known, by what its sampling records; whether
    anybody was known, of none. A choice waits unless both answers were made with the settings of
    the house, and its person is known or another person agrees. Who is before a "/" vouches for
    the names behind it, so these are one person here. The plus keeps SQLite from looking through
    all choices where it has a message to look by.
    """
    db.execute("alter table speaker add column house integer check (house in (0, 1))")
    db.execute("alter table feedback add column known integer check (known in (0, 1))")
    db.execute("drop trigger speaker_for_ever")
    db.execute("""
        update speaker set house = 0
        where json_array_length(coalesce(json_extract(sampling, '$.logit_bias'), '[]')) > 0
            or json_array_length(coalesce(json_extract(sampling, '$.stop'), '[]')) > 0
            or coalesce(json_extract(sampling, '$.top_k'), 0) <> 0
            or coalesce(json_extract(sampling, '$.min_p'), 0) <> 0
            or coalesce(json_extract(sampling, '$.repetition_penalty'), 1) <> 1
            or coalesce(json_extract(sampling, '$.frequency_penalty'), 0) <> 0
            or coalesce(json_extract(sampling, '$.presence_penalty'), 0) <> 0""")
    _forbid_updates(db, "speaker")
    db.execute("""
        create view choice as
        select f.id, f.rowid as number, f.person, f.known, f.message_id as better,
            json_extract(f.value, '$.over') as worse,
            coalesce(json_extract(f.value, '$.tie'), 0) as tie,
            substr(f.person || '/', 1, instr(f.person || '/', '/') - 1) as voice
        from feedback f where +f.kind = 'choice'""")
    db.execute("drop view waiting_feedback")
    db.execute("""
        create view waiting_feedback as
        select f.id, f.message_id, f.kind, case f.kind
            when 'edit' then 1000 when 'thumb' then 10 when 'choice' then 5 else 1 end as points
        from feedback f left join review r
            on r.rowid = (select max(rowid) from review where message_id = f.message_id)
        where case f.kind
            when 'edit' then r.id is null or (
                f.rowid > coalesce((select rowid from feedback where id = r.feedback_id), 0)
                and json_extract(f.value, '$.text') is not r.answer)
            when 'thumb' then r.id is null and json_extract(f.value, '$.up') = 0
                and f.rowid = (select max(rowid) from feedback
                    where message_id = f.message_id and person = f.person and kind = 'thumb')
            when 'comment' then r.id is null
            when 'choice' then r.id is null and exists (
                select 1 from choice c where c.id = f.id and not c.tie
                and not exists (select 1 from speaker
                    where message_id in (c.better, c.worse) and finish <> 'stop')
                and not exists (select 1 from choice later
                    where later.number > c.number and later.person = c.person
                    and later.better in (c.better, c.worse)
                    and later.worse in (c.better, c.worse))
                and not (
                    (select count(*) from speaker
                        where message_id in (c.better, c.worse) and house = 1) = 2
                    and (coalesce(c.known, 0) = 1 or exists (select 1 from choice other
                        where other.better = c.better and other.worse = c.worse
                        and not other.tie and (other.known = 1 or other.voice <> c.voice)))))
        end""")
    db.execute("""
        create trigger feedback_choice_queued after insert on feedback when new.kind = 'choice'
        begin
            delete from pending where message_id = json_extract(new.value, '$.over');
            insert into pending select message_id, sum(points) from waiting_feedback
            where message_id = json_extract(new.value, '$.over') group by message_id;
        end""")
    chosen = "select message_id from feedback where kind = 'choice'"
    db.execute(f"delete from pending where message_id in ({chosen})")
    db.execute(f"""
        insert into pending select message_id, sum(points) from waiting_feedback
        where message_id in ({chosen}) group by message_id""")


@_migration
def m014_votes(db: "Database") -> None:
    """Let one view hold which preferences count and which of them train without a reviewer.

    A preference is a choice, or a thumb up for an answer after a thumb down for an earlier one to
    the same message. A vote is a person's last preference between two answers. It is trusted where
    both were made with the settings of the house, and a vote like it is of somebody known or of
    another voice: who is before a "/" vouches for the names behind it, so these are one voice. The
    queue and the curation both read it. The pluses keep SQLite from walking through all choices
    where it has a message to look by.
    """
    db.execute("drop trigger feedback_choice_queued")
    db.execute("drop view waiting_feedback")
    db.execute("drop view choice")
    db.execute("""
        create view preference as
        select max(f.rowid, coalesce(disliked.rowid, 0)) as number,
            f.id, disliked.id as disliked_id, f.person,
            f.known = 1 and coalesce(disliked.known, f.kind = 'choice') as known,
            f.message_id as better, other.id as worse,
            coalesce(json_extract(f.value, '$.tie'), 0) as tie
        from feedback f join message answer on answer.id = f.message_id
            join message other on other.parent_id = answer.parent_id
            left join feedback disliked on f.kind = 'thumb' and disliked.rowid = (
                select max(rowid) from feedback
                where message_id = other.id and person = f.person and kind = 'thumb')
        where case f.kind
            when 'choice' then other.id = json_extract(f.value, '$.over')
            when 'thumb' then json_extract(f.value, '$.up') = 1
                and json_extract(disliked.value, '$.up') = 0 and other.rowid < answer.rowid
                and f.rowid = (select max(rowid) from feedback
                    where message_id = f.message_id and person = f.person and kind = 'thumb')
        end""")
    db.execute("""
        create view vote_in_force as
        select p.*, substr(p.person || '/', 1, instr(p.person || '/', '/') - 1) as voice
        from preference p where not exists (select 1 from preference later
            where later.number > p.number and later.person = p.person
            and later.better in (p.better, p.worse) and later.worse in (p.better, p.worse))""")
    db.execute("""
        create view vote as
        select v.*,
            (select count(*) from speaker
                where message_id in (v.better, v.worse) and house = 1) = 2
            and exists (select 1 from vote_in_force alike
                where alike.better = v.better and alike.worse = v.worse and not alike.tie
                and (alike.known = 1 or alike.voice <> v.voice)) as trusted
        from vote_in_force v""")
    db.execute("""
        create view waiting_feedback as
        select f.id, f.message_id, f.kind, case
            when f.kind = 'edit' then 1000 when f.kind = 'choice' then 5 when f.kind = 'comment'
            then 1 when json_extract(f.value, '$.up') = 1 then 5 else 10 end as points
        from feedback f left join review r
            on r.rowid = (select max(rowid) from review where message_id = f.message_id)
        where case
            when f.kind = 'edit' then r.id is null or (
                f.rowid > coalesce((select rowid from feedback where id = r.feedback_id), 0)
                and json_extract(f.value, '$.text') is not r.answer)
            when r.id is not null then 0
            when f.kind = 'comment' then 1
            when f.kind = 'thumb' and json_extract(f.value, '$.up') = 0 then f.rowid = (
                select max(rowid) from feedback
                where message_id = f.message_id and person = f.person and kind = 'thumb')
            when f.kind in ('choice', 'thumb') then exists (
                select 1 from vote v
                where v.better = f.message_id and v.id = f.id and not v.tie and not v.trusted
                and not exists (select 1 from speaker
                    where message_id in (v.better, v.worse) and finish <> 'stop'))
        end""")
    for change, row in (("insert", "new"), ("delete", "old")):
        siblings = f"""select s.id from message m join message s
            on s.id = m.id or s.parent_id = m.parent_id where m.id = {row}.message_id"""
        db.execute(f"drop trigger feedback_{change}_queued")
        db.execute(f"""
            create trigger feedback_{change}_queued after {change} on feedback begin
                delete from pending where message_id in ({siblings});
                insert into pending select message_id, sum(points) from waiting_feedback
                where message_id in ({siblings}) group by message_id;
            end""")
    rated = "select message_id from feedback where kind in ('choice', 'thumb')"
    db.execute(f"delete from pending where message_id in ({rated})")
    db.execute(f"""
        insert into pending select message_id, sum(points) from waiting_feedback
        where message_id in ({rated}) group by message_id""")


SCHEMA_VERSION = len(MIGRATIONS)
"""What ``pragma user_version`` says of a database that is up to date."""
