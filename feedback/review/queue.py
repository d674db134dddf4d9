"""Lists what waits for a reviewer: answers that people edited, disliked, preferred or commented on.

for item in list_pending(store): ...   ->   feedback.review.decisions.decide(...)
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from feedback.exchange import Exchange
from feedback.kinds import Feedback
from feedback.messages import Message
from feedback.review.conflicts import review_version
from feedback.review.decision_row import Decision
from feedback.review.decisions import decisions_in_force
from feedback.store import Store

_EDIT = 1000
"""Priority from which an answer has a new edit: the table ``pending`` adds so much for each."""


@dataclass(frozen=True)
class Proposal:
    """Holds a text that people propose instead of an answer, and when the last of them did."""

    text: str
    people: list[str]
    created_at: str


@dataclass(frozen=True)
class QueueItem:
    """Holds an answer that waits for a reviewer, with all that was said of it.

    ``version`` names the state that is seen here: it is given back with the decision.
    """

    exchange: Exchange
    why: str
    proposals: list[Proposal]
    """The different texts of people's edits, that of the newest edit at the end."""
    disagree: bool
    """Whether different people propose different texts."""
    reasons: list[str]
    comments: list[str]
    preferred_to: list[str]
    """The texts of the answers that people prefer this one to."""
    priority: int
    decision: Decision | None
    """The decision in force; None when nobody has decided yet."""
    version: str

    @property
    def answer(self) -> Message:
        """Return the answer as it was given."""
        return self.exchange.answer

    @property
    def question(self) -> str:
        """Return the question that it answers."""
        return self.exchange.question

    @property
    def proposed(self) -> str | None:
        """Return the text of the newest edit, if any."""
        return self.proposals[-1].text if self.proposals else None

    @property
    def finish(self) -> str:
        """Return why the answer ended; all but "stop" is before its end."""
        return self.exchange.speaker.finish if self.exchange.speaker else "stop"


def list_pending(store: Store, limit: int = 50) -> list[QueueItem]:
    """Return the undecided answers, most pressing first. A new edit brings a decided one back."""
    sql = "select * from pending order by priority desc, message_id limit ?"
    rows = store.rows(sql, (limit,))
    return _queue_items(store, {row["message_id"]: row["priority"] for row in rows})


def find_item(store: Store, message_id: str) -> QueueItem:
    """Return an answer as the queue shows it, even if it does not wait; raise NotFoundError."""
    store.message(message_id)
    row = store.row("select priority from pending where message_id = ?", (message_id,))
    (item,) = _queue_items(store, {message_id: row["priority"] if row else 0})
    return item


def count_pending(store: Store) -> int:
    """Return how many answers wait for a reviewer."""
    row = store.row("select waiting from pending_count")
    return int(row["waiting"]) if row else 0


def _queue_items(store: Store, priorities: dict[str, int]) -> list[QueueItem]:
    exchanges = store.exchanges(priorities)
    feedback = store.feedback_by_message(priorities)
    decisions = decisions_in_force(store, priorities)
    worse = _texts_of_worse(store, priorities)
    return [
        _queue_item(exchanges[id], feedback[id], decisions.get(id), priority, worse.get(id, []))
        for id, priority in priorities.items()
    ]


def _queue_item(
    exchange: Exchange,
    given: Sequence[Feedback],
    decision: Decision | None,
    priority: int,
    worse: Sequence[str],
) -> QueueItem:
    down = _thumbs_down(given)
    edits = [one for one in given if one.kind == "edit"]
    comments = [one.value["text"] for one in given if one.kind == "comment"]
    return QueueItem(
        exchange=exchange,
        why=_describe_signals(priority, down, comments, worse),
        proposals=_proposals(edits),
        disagree=len(set(_newest_texts(edits).values())) > 1,
        reasons=sorted({reason for thumb in down for reason in thumb.value.get("reasons", [])}),
        comments=comments,
        preferred_to=list(worse),
        priority=priority,
        decision=decision,
        version=review_version(given, decision),
    )


def _proposals(edits: Sequence[Feedback]) -> list[Proposal]:
    """Return the different texts of edits that are ordered oldest first, in the order in which
    each was proposed last."""
    by_text: dict[str, list[Feedback]] = {}
    for edit in edits:
        text = edit.value["text"]
        by_text[text] = [*by_text.pop(text, []), edit]
    return [
        Proposal(text, list(dict.fromkeys(one.person for one in same)), same[-1].created_at)
        for text, same in by_text.items()
    ]


def _newest_texts(edits: Sequence[Feedback]) -> dict[str, str]:
    """Return the text of each person's newest edit."""
    return {edit.person: edit.value["text"] for edit in edits}


def _texts_of_worse(store: Store, message_ids: Iterable[str]) -> dict[str, list[str]]:
    """Return the texts of the answers that people prefer each of these to, by its message id."""
    found: dict[str, list[str]] = {}
    sql = """select better, m.content from vote join message m on m.id = worse
        where not tie and better in (select value from json_each(?))
        group by better, worse order by min(number)"""
    for row in store.rows(sql, (json.dumps(list(message_ids)),)):
        found.setdefault(row["better"], []).append(row["content"])
    return found


def _describe_signals(
    priority: int, down: Sequence[Feedback], comments: Sequence[str], worse: Sequence[str]
) -> str:
    """Return why an answer waits, in words: "edited, thumb down by 2"."""
    words = ["edited"] if priority >= _EDIT else []
    if down:
        words.append("thumb down" if len(down) == 1 else f"thumb down by {len(down)}")
    if comments:
        words.append("commented")
    if worse:
        words.append("preferred to another answer")
    return ", ".join(words)


def _thumbs_down(given: Sequence[Feedback]) -> list[Feedback]:
    newest = {one.person: one for one in given if one.kind == "thumb"}
    return [thumb for thumb in newest.values() if thumb.value["up"] is False]


def pending_edits(store: Store) -> set[str]:
    """Return the ids of the edits that no decision knew of yet, and that say something else."""
    sql = "select id from waiting_feedback where kind = 'edit'"
    return {row["id"] for row in store.rows(sql)}
