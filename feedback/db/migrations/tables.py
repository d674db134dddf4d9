"""Defines most tables; what keeps the review queue and later finds approved answers is beside."""

from typing import TYPE_CHECKING

from feedback.db.migrations.append_only import forbid_updates

if TYPE_CHECKING:
    from sqlite_utils import Database


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
    forbid_updates(db, "conversation", "message", "speaker")


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
    forbid_updates(db, "feedback", "review")


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
    forbid_updates(db, "approved", "withdrawal", "graduation")


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
    forbid_updates(db, "split", "cluster_member")


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
    forbid_updates(db, "adapter", "promotion", "report", "cycle", "cycle_end")


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
    forbid_updates(db, "event", "delivery")


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
    forbid_updates(db, "access_key", "revocation")


def m012_base_locations(db: "Database") -> None:
    """Keep where the base of each revision was served from last: folders move."""
    db.execute("""
        create table base_location (
            revision text primary key,
            name text not null,
            recorded_at text not null
        ) strict""")


def m015_base_identities(db: "Database") -> None:
    """Keep which base each revision is, so that files saved anew are no other base, and on which
    revision each cycle trained."""
    db.execute("alter table base_location rename to base")
    db.execute("alter table base add column identity text")
    db.execute("drop trigger cycle_for_ever")
    db.execute("alter table cycle add column base_revision text")
    db.execute("""
        update cycle set base_revision = (
            select base_revision from adapter join cycle_end
            on adapter.id = json_extract(detail, '$.adapter') where cycle_id = cycle.id)""")
    forbid_updates(db, "cycle")


def m016_thoughts(db: "Database") -> None:
    """Keep what a model thought before an answer, apart from it, and how long that took."""
    db.execute("alter table message add column thought text")
    db.execute("alter table speaker add column thought_ms real")
