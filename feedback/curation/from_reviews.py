"""Reviewers' decisions as rows: a right answer to learn, and the answer it is preferred to."""

from dataclasses import replace
from typing import Any

from feedback.curation.rows import Dropped, Row, is_complete, prompt_messages
from feedback.review.decisions import Decision
from feedback.store import Store


def rows_from_reviews(store: Store) -> tuple[list[Row], list[Dropped]]:
    """The decisions in force, oldest first: an ``sft`` row each, and a ``pair`` where the answer
    that people saw was another."""
    rows: list[Row] = []
    dropped: list[Dropped] = []
    for found in store.rows(_IN_FORCE):
        withdrawn, decision = _decision(found)
        row = _row(store, decision)
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
    fields = dict(row)
    return fields.pop("withdrawn"), Decision(**fields)


def _row(store: Store, decision: Decision) -> Row:
    thread = store.thread(decision.message_id)
    message = thread[-1]
    edits = [
        edit
        for edit in store.feedback_on(message.id)
        if edit.kind == "edit" and edit.value["text"] == decision.answer
    ]
    owner = store.conversation(message.conversation_id).person
    # Exactly the same text or not: a correction may be one of punctuation.
    differs = message.content.strip() != (decision.answer or "").strip()
    return Row(
        kind="sft",
        prompt=prompt_messages(store, thread),
        chosen=decision.answer or "",
        rejected=message.content if differs and is_complete(store, message) else None,
        message_id=message.id,
        sources=[decision.id, *(edit.id for edit in edits)],
        people=sorted({owner, *(edit.person for edit in edits)}),
    )


def _drop(row: Row, reason: str) -> Dropped:
    text = row.chosen or row.rejected or ""
    return Dropped(row.message_id, reason, row.sources, row.people, text)
