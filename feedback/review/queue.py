"""Lists what waits for a reviewer: answers that people edited, disliked or commented on.

for item in list_pending(store): ...   ->   feedback.review.decisions.decide(...)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from feedback.exchange import Exchange
from feedback.kinds import Feedback
from feedback.messages import Message
from feedback.review.decisions import newest_edit
from feedback.store import Store

_EDIT = 1000
"""Priority from which an answer has a new edit: the table ``pending`` adds so much for each."""


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


def list_pending(store: Store, limit: int = 50) -> list[QueueItem]:
    """Return the undecided answers, most pressing first. A new edit brings a decided one back."""
    sql = "select * from pending order by priority desc, message_id limit ?"
    priorities = {row["message_id"]: row["priority"] for row in store.rows(sql, (limit,))}
    exchanges = store.exchanges(priorities)
    feedback = store.feedback_by_message(priorities)
    return [
        _queue_item(exchanges[id], feedback[id], priority) for id, priority in priorities.items()
    ]


def count_pending(store: Store) -> int:
    """Return how many answers wait for a reviewer."""
    row = store.row("select waiting from pending_count")
    return int(row["waiting"]) if row else 0


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
    sql = "select id from waiting_feedback where kind = 'edit'"
    return {row["id"] for row in store.rows(sql)}
