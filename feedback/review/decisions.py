"""Keeps what reviewers decide: an answer is approved, corrected or rejected.

An approved or corrected answer is given from the next question on, and trains in the next cycle.
"""

import json
from collections.abc import Iterable, Sequence
from typing import get_args

from feedback.db.database import Connection
from feedback.errors import TalkbackError
from feedback.exchange import Exchange
from feedback.exemplars import question_key
from feedback.ids import new_id, now
from feedback.matching.text_search import keys_without_typo
from feedback.review.conflicts import check_own, check_seen
from feedback.review.decision_row import Action, Decision
from feedback.store import Store


class BadDecisionError(TalkbackError):
    """Reports a decision that cannot be taken, with the reason and what to do."""


def decide(
    store: Store,
    message_id: str,
    reviewer: str,
    action: str,
    answer: str | None = None,
    note: str = "",
    *,
    seen: str | None = None,
) -> Decision:
    """Keep a reviewer's decision, whole or not at all.

    ``approve``: the newest edit is right, or the answer itself where nobody edited it; an
    ``answer`` given with it is the text that the reviewer saw, and must be that text.
    ``correct``: ``answer`` is right. ``reject``: nothing of this answer trains.
    ``seen`` is the QueueItem's version that the reviewer saw; of several edits ``answer`` may then
    be any. Raises NotFoundError, BadDecisionError, or DecisionConflictError when somebody has said
    or decided something since; without ``seen``, when it would overrule another reviewer.
    """
    if action not in get_args(Action):
        raise BadDecisionError(f"unknown action {action!r}; one of {', '.join(get_args(Action))}")
    with store.write() as db:
        exchange = store.exchange(message_id)
        if exchange.answer.role != "assistant" or not exchange.question.strip():
            raise BadDecisionError(f"{message_id} answers nobody; decide on an answer to a person")
        given = store.feedback_on(message_id)
        in_force = decision_on(store, message_id)
        if seen is not None:
            check_seen(message_id, seen, given, in_force)
        edits = [one.value["text"] for one in given if one.kind == "edit"]
        right = _right_answer(action, answer, edits[-1:] if seen is None else edits, exchange)
        if seen is None and in_force and in_force.answer != right:
            waits = store.row("select 1 from pending where message_id = ?", (message_id,))
            if not waits:
                check_own(in_force, reviewer)
        decision = Decision(
            id=new_id("rev"),
            message_id=message_id,
            reviewer=reviewer,
            action=action,  # type: ignore[arg-type]  # checked above
            answer=right,
            note=note,
            feedback_id=given[-1].id if given else None,
            created_at=now(),
        )
        db.insert("review", vars(decision))
        _withdraw_given_exemplars(store, decision, exchange)
        _replace_approved(db, decision, exchange)
    return decision


def _right_answer(
    action: str, answer: str | None, edits: Sequence[str], exchange: Exchange
) -> str | None:
    """Return the text that a decision declares right, None for a rejection. ``edits`` are those
    that can be approved; without any it is the answer as it was given."""
    if action == "reject":
        return None
    given = exchange.answer
    texts = edits or [given.content]
    right = (answer or "") if action == "correct" else texts[-1] if answer is None else answer
    if action == "approve" and right not in texts:
        raise BadDecisionError(
            f"the text to approve for {given.id} is not the newest one any more; "
            "look again, or correct it with your own text"
        )
    if not right.strip():
        raise BadDecisionError(f"the answer to {given.id} is empty; correct it with a text")
    if right.strip() == given.content.strip() and not exchange.is_complete:
        raise BadDecisionError(
            f"the answer {given.id} was cut before its end; correct it with the whole text, "
            "or reject it"
        )
    return right


def _withdrawal_reason(decision: Decision) -> str:
    return "rejected by reviewer" if decision.answer is None else "later correction replaces it"


def _withdraw_given_exemplars(store: Store, decision: Decision, exchange: Exchange) -> None:
    """Withdraw the approved answer that was given here as it stands, when the decision is against
    it: it is as wrong wherever else it would be given. One to another question, which was given
    because that is similar, is still right for that."""
    speaker = exchange.speaker
    if speaker and speaker.source == "approved" and decision.answer != exchange.answer.content:
        key = question_key(exchange.question, exchange.earlier)
        same = {key, *keys_without_typo(store, key)}
        asked = "select id, question_key from approved where id in (select value from json_each(?))"
        with store.write() as db:
            for row in store.rows(asked, (json.dumps(speaker.exemplars),)):
                if row["question_key"] in same:
                    _withdraw(db, "id", row["id"], _withdrawal_reason(decision))


def _replace_approved(db: Connection, decision: Decision, exchange: Exchange) -> None:
    """Withdraw what was approved for this answer or question before; approve the new answer."""
    key = question_key(exchange.question, exchange.earlier)
    _withdraw(db, "message_id", decision.message_id, _withdrawal_reason(decision))
    if decision.answer is None:
        return
    _withdraw(db, "question_key", key, _withdrawal_reason(decision))
    db.insert(
        "approved",
        {
            "id": new_id("app"),
            "review_id": decision.id,
            "message_id": decision.message_id,
            "question": exchange.question,
            "question_key": key,
            "answer": decision.answer,
            "created_at": decision.created_at,
        },
    )


def _withdraw(db: Connection, column: str, value: str, reason: str) -> None:
    db.execute(
        f"""insert or ignore into withdrawal (approved_id, reason, created_at)
        select id, ?, ? from approved where {column} = ?""",
        (reason, now(), value),
    )


def decision_on(store: Store, message_id: str) -> Decision | None:
    """Return the decision in force: the newest one; None when nobody has decided on the answer."""
    sql = "select * from review where message_id = ? order by rowid desc limit 1"
    row = store.row(sql, (message_id,))
    return Decision(**row) if row else None


def decisions_in_force(
    store: Store, message_ids: Iterable[str] | None = None
) -> dict[str, Decision]:
    """Return the newest decision on every answer that has one, or on each of these answers, by the
    answer's message id."""
    ids = None if message_ids is None else json.dumps(list(message_ids))
    chosen = "" if ids is None else "where message_id in (select value from json_each(?))"
    sql = f"""select * from review where rowid in
        (select max(rowid) from review {chosen} group by message_id)"""
    rows = store.rows(sql, () if ids is None else (ids,))
    return {row["message_id"]: Decision(**row) for row in rows}
