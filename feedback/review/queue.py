"""Lists what waits for a reviewer: answers that people edited, disliked or commented on.

for item in list_pending(store): ...   ->   feedback.review.decisions.decide(...)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from feedback.exemplars import question_and_earlier
from feedback.kinds import Feedback
from feedback.messages import Message
from feedback.review.decisions import decision_on, newest_edit
from feedback.store import Store

_EDIT, _DOWN, _COMMENT = 1000, 10, 1
"""Priorities: an edit offers the right answer, so any edit goes before any number of thumbs."""


@dataclass(frozen=True)
class QueueItem:
    """An answer that waits for a reviewer. ``proposed`` is the newest edit of it, if any."""

    message: Message
    question: str
    thread: list[Message]
    why: str
    proposed: str | None
    reasons: list[str]
    comments: list[str]
    priority: int


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
    """The undecided answers, most pressing first. A new edit brings a decided one back."""
    sql = f"{_PENDING} order by priority desc, message_id limit ?"
    return [
        _queue_item(store, row["message_id"], row["priority"]) for row in store.rows(sql, (limit,))
    ]


def count_pending(store: Store) -> int:
    """How many answers wait for a reviewer."""
    row = store.row(f"select count(*) as n from ({_PENDING})")
    return int(row["n"]) if row else 0


def _queue_item(store: Store, message_id: str, priority: int) -> QueueItem:
    thread = store.thread(message_id)
    given = store.feedback_on(message_id)
    down = _thumbs_down(given)
    edit = newest_edit(given)
    comments = [one.value["text"] for one in given if one.kind == "comment"]
    return QueueItem(
        message=thread[-1],
        question=question_and_earlier(thread)[0],
        thread=thread,
        why=_describe_signals(priority, down, comments),
        proposed=edit.value["text"] if edit else None,
        reasons=sorted({reason for thumb in down for reason in thumb.value.get("reasons", [])}),
        comments=comments,
        priority=priority,
    )


def _describe_signals(priority: int, down: Sequence[Feedback], comments: Sequence[str]) -> str:
    """In words: "edited, thumb down by 2"."""
    words = ["edited"] if priority >= _EDIT else []
    if down:
        words.append("thumb down" if len(down) == 1 else f"thumb down by {len(down)}")
    if comments:
        words.append("commented")
    return ", ".join(words)


def _thumbs_down(given: Sequence[Feedback]) -> list[Feedback]:
    newest = {one.person: one for one in given if one.kind == "thumb"}
    return [thumb for thumb in newest.values() if thumb.value["up"] is False]


def is_pending(store: Store, edit: Feedback) -> bool:
    """Whether no decision knew of this edit yet."""
    decision = decision_on(store, edit.message_id)
    if decision is None or decision.answer == edit.value["text"]:
        return decision is None
    feedback_ids = [one.id for one in store.feedback_on(edit.message_id)]
    return decision.feedback_id not in feedback_ids[feedback_ids.index(edit.id) :]
