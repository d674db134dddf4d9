"""Lists what waits for a reviewer: answers that people edited, disliked or commented on.

for item in list_pending(store): ...   ->   feedback.review.decisions.decide(...)
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from feedback.exchange import Exchange
from feedback.kinds import Feedback
from feedback.messages import Message
from feedback.review.decisions import newest_edit
from feedback.store import Store

_EDIT, _DOWN, _COMMENT = 1000, 10, 1
"""Priorities: an edit offers the right answer, so any edit goes before any number of thumbs."""


@dataclass(frozen=True)
class QueueItem:
    """Holds an answer that waits for a reviewer; ``proposed`` is the newest edit of it, if any."""

    exchange: Exchange
    why: str
    proposed: str | None
    reasons: list[str]
    comments: list[str]
    priority: int

    @property
    def answer(self) -> Message:
        """Return the answer as it was given."""
        return self.exchange.answer

    @property
    def question(self) -> str:
        """Return the question that it answers."""
        return self.exchange.question


_PENDING = f"""
with decided as (
    select message_id, answer, max(rowid) as newest,
        coalesce((select f.rowid from feedback f where f.id = review.feedback_id), 0) as knew
    from review group by message_id
), thumbs as (
    select message_id, value, max(rowid) from feedback where kind = 'thumb'
    group by message_id, person
), points (message_id, points) as (
    select f.message_id, {_EDIT} from feedback f left join decided d using (message_id)
    where f.kind = 'edit' and (d.newest is null
        or (f.rowid > d.knew and json_extract(f.value, '$.text') is not d.answer))
    union all
    select message_id, {_DOWN} from thumbs
    where json_extract(value, '$.up') = 0 and message_id not in (select message_id from decided)
    union all
    select message_id, {_COMMENT} from feedback
    where kind = 'comment' and message_id not in (select message_id from decided)
)
select message_id, sum(points) as priority from points group by message_id"""


def list_pending(store: Store, limit: int = 50) -> list[QueueItem]:
    """Return the undecided answers, most pressing first. A new edit brings a decided one back."""
    sql = f"{_PENDING} order by priority desc, message_id limit ?"
    priorities = {row["message_id"]: row["priority"] for row in store.rows(sql, (limit,))}
    exchanges = store.exchanges(priorities)
    feedback = store.feedback_by_message(priorities)
    return [
        _queue_item(exchanges[id], feedback[id], priority) for id, priority in priorities.items()
    ]


def count_pending(store: Store) -> int:
    """Count the answers that wait for a reviewer."""
    row = store.row(f"select count(*) as n from ({_PENDING})")
    return int(row["n"]) if row else 0


def _queue_item(exchange: Exchange, given: Sequence[Feedback], priority: int) -> QueueItem:
    down = _thumbs_down(given)
    edit = newest_edit(given)
    comments = [one.value["text"] for one in given if one.kind == "comment"]
    return QueueItem(
        exchange=exchange,
        why=_describe_signals(priority, down, comments),
        proposed=edit.value["text"] if edit else None,
        reasons=sorted({reason for thumb in down for reason in thumb.value.get("reasons", [])}),
        comments=comments,
        priority=priority,
    )


def _describe_signals(priority: int, down: Sequence[Feedback], comments: Sequence[str]) -> str:
    """Return why an answer waits, in words: "edited, thumb down by 2"."""
    words = ["edited"] if priority >= _EDIT else []
    if down:
        words.append("thumb down" if len(down) == 1 else f"thumb down by {len(down)}")
    if comments:
        words.append("commented")
    return ", ".join(words)


def _thumbs_down(given: Sequence[Feedback]) -> list[Feedback]:
    newest = {one.person: one for one in given if one.kind == "thumb"}
    return [thumb for thumb in newest.values() if thumb.value["up"] is False]


def pending_edits(store: Store) -> set[str]:
    """Return the ids of the edits that no decision knew of yet, and that say something else."""
    return {
        row["id"]
        for row in store.rows(_EDITS)
        if row["review_id"] is None
        or (row["is_later"] and json.loads(row["value"])["text"] != row["answer"])
    }


_EDITS = """
select e.id, e.value, r.id as review_id, r.answer,
    e.rowid > coalesce((select f.rowid from feedback f where f.id = r.feedback_id), 0) as is_later
from feedback e left join review r
    on r.rowid = (select max(rowid) from review where message_id = e.message_id)
where e.kind = 'edit'"""
"""Every edit, and whether it came after the feedback that the decision in force knew of."""
