"""Defines the review queue: a table that triggers keep, and the views that say what waits."""

from typing import TYPE_CHECKING

from feedback.db.migrations.append_only import forbid_updates

if TYPE_CHECKING:
    from sqlite_utils import Database


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
    forbid_updates(db, "speaker")
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
    db.execute(f"create view vote_pair as {_vote_pairs()}")
    db.execute("""
        create view vote as
        select v.*, coalesce(p.trusted, 0) as trusted
        from vote_in_force v left join vote_pair p using (better, worse)""")
    db.execute(f"create view waiting_feedback as {_waiting()}")
    for change, row in (("insert", "new"), ("delete", "old")):
        siblings = f"""select s.id from message m join message s
            on s.id = m.id or s.parent_id = m.parent_id where m.id = {row}.message_id"""
        db.execute(f"drop trigger feedback_{change}_queued")
        db.execute(f"""
            create trigger feedback_{change}_queued after {change} on feedback begin
                delete from pending where message_id in ({siblings});
                insert into pending select message_id, sum(points)
                from ({_waiting(siblings)}) group by message_id;
            end""")
    rated = "select message_id from feedback where kind in ('choice', 'thumb')"
    db.execute(f"delete from pending where message_id in ({rated})")
    db.execute(f"""
        insert into pending select message_id, sum(points)
        from ({_waiting(rated)}) group by message_id""")


def _vote_pairs(answers: str = "") -> str:
    """Return the statement that sums up the votes between the same two answers: all, or those for
    the answers that a statement selects, for SQLite would walk through all of a view for them."""
    only = f"and better in ({answers})" if answers else ""
    return f"""
        select better, worse, count(*) as votes,
            (select count(*) from speaker where message_id in (better, worse) and house = 1) = 2
            and (max(known) = 1 or min(voice) <> max(voice)) as trusted
        from vote_in_force where not tie {only} group by better, worse"""


def _waiting(answers: str = "") -> str:
    """Return the statement that selects what waits for a reviewer, as `_vote_pairs` does."""
    only = f"and f.message_id in ({answers})" if answers else ""
    return f"""
        select f.id, f.message_id, f.kind, case f.kind
            when 'edit' then 1000 when 'comment' then 1 else 10 end as points
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
        end {only}
        union all
        select null, p.better, 'vote', 5 * p.votes from ({_vote_pairs(answers)}) p
        where not p.trusted and not exists (select 1 from review where message_id = p.better)
            and not exists (select 1 from speaker
                where message_id in (p.better, p.worse) and finish <> 'stop')"""
