"""Turns reviewers' decisions into rows: a right answer to learn, and the one it is preferred to."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from feedback.curation.rows import Dropped, Row, prompt_messages
from feedback.exchange import Exchange
from feedback.kinds import Feedback
from feedback.review.decision_row import Decision
from feedback.store import Store


def rows_from_reviews(store: Store) -> tuple[list[Row], list[Dropped]]:
    """Return the rows of the decisions in force, oldest first, and the decisions without a row.

    Each gives an ``sft`` row, and a ``pair`` too where the answer that people saw was another.
    """
    rows: list[Row] = []
    dropped: list[Dropped] = []
    in_force = [_decision(row) for row in store.rows(_IN_FORCE)]
    message_ids = [decision.message_id for _, decision in in_force]
    exchanges = store.exchanges(message_ids)
    feedback = store.feedback_by_message(message_ids)
    for withdrawn, decision in in_force:
        id = decision.message_id
        row = _row(decision, exchanges[id], feedback[id])
        if decision.answer is None:
            dropped.append(_drop(row, "rejected by reviewer"))
        elif withdrawn:
            dropped.append(_drop(row, withdrawn))
        else:
            rows += [row, replace(row, kind="pair")] if row.rejected is not None else [row]
    return rows, dropped


_IN_FORCE = """
select r.*, w.reason as withdrawn
from review r left join approved a on a.review_id = r.id left join withdrawal w
    on w.approved_id = a.id
where r.rowid in (select max(rowid) from review group by message_id) order by r.rowid"""


def _decision(row: Any) -> tuple[str | None, Decision]:
    """Return why a decision's answer was withdrawn, if it was, and the decision."""
    fields = dict(row)
    return fields.pop("withdrawn"), Decision(**fields)


def _row(decision: Decision, exchange: Exchange, feedback: Sequence[Feedback]) -> Row:
    edits = [one for one in feedback if one.kind == "edit" and one.value["text"] == decision.answer]
    given = exchange.answer.content
    # Exactly the same text or not: a correction may be one of punctuation.
    differs = given.strip() != (decision.answer or "").strip()
    return Row(
        kind="sft",
        prompt=prompt_messages(exchange),
        chosen=decision.answer or "",
        rejected=given if differs and exchange.is_complete else None,
        message_id=decision.message_id,
        sources=[decision.id, *(edit.id for edit in edits)],
        people=sorted({exchange.person, *(edit.person for edit in edits)}),
        thought=exchange.answer.thought,
    )


def _drop(row: Row, reason: str) -> Dropped:
    text = row.chosen or row.rejected or ""
    return Dropped(row.message_id, reason, row.sources, row.people, text)
