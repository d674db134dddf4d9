"""Turns feedback into training rows, and gives the reason for all that does not train.

``talkback cycle --dry-run`` prints what this returns.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import Field

from feedback.curation.from_choices import pairs_from_choices
from feedback.curation.from_reviews import rows_from_reviews
from feedback.curation.rows import Dropped as Dropped
from feedback.curation.rows import Row as Row
from feedback.curation.split import assign, split_items
from feedback.kinds import Feedback
from feedback.review.queue import pending_edits
from feedback.settings import Settings
from feedback.similarity import normalise_text
from feedback.store import Store


class CurateSettings(Settings):
    """Reads ``[curate]`` of talkback.toml."""

    table: ClassVar[str] = "curate"
    held_out: float = Field(default=0.1, ge=0, le=0.5)
    """Share of the clusters that never train; they tell whether an adapter has learned."""
    held_out_from: int = Field(default=50, ge=0)
    """All train until so many answers were corrected or chosen: of a few, the one that is held out
    would be lost to learning, and prove nothing. What once trained trains for ever."""
    pairs_per_person: int = Field(default=20, ge=0)
    """How many preferences of one person train: nobody shapes the bot alone."""


@dataclass(frozen=True)
class Curation:
    """Holds all rows, of both sides of the split, and all that was dropped."""

    rows: list[Row]
    dropped: list[Dropped]


def curate(
    store: Store, settings: CurateSettings | None = None, *, persist: bool = True
) -> Curation:
    """Return what there is to learn from the feedback so far.

    The split of new clusters is decided, and written down unless ``persist`` is false.
    """
    settings = settings or CurateSettings()
    corrected, not_corrected = rows_from_reviews(store)
    preferred, not_preferred = pairs_from_choices(store, settings.pairs_per_person)
    distinct, repeated = _distinct([*corrected, *preferred])
    enough = len({row.message_id for row in distinct}) >= settings.held_out_from
    rows, bridging = _split(store, distinct, settings.held_out if enough else 0, persist)
    dropped = [*not_corrected, *not_preferred, *repeated, *bridging]
    used = {id for part in (rows, dropped) for one in part for id in one.sources}
    return Curation(rows, [*dropped, *_explain_unused(store, used)])


def _distinct(rows: Sequence[Row]) -> tuple[list[Row], list[Dropped]]:
    """Drop empty and repeated rows; the first of the same text stays."""
    kept: list[Row] = []
    dropped: list[Dropped] = []
    seen: dict[tuple[str, ...], str] = {}
    for row in rows:
        text = _identity(row)
        if not row.chosen.strip() or not any(turn["role"] == "user" for turn in row.prompt):
            dropped.append(_drop(row, "empty answer" if row.prompt else "no question"))
        elif text in seen:
            dropped.append(_drop(row, f"same text as row {seen[text]}"))
        else:
            seen[text] = row.message_id
            kept.append(row)
    return kept, dropped


def _identity(row: Row) -> tuple[str, ...]:
    """Return what makes two rows one; a pair repeats another only with its rejected answer."""
    turns = [normalise_text(turn["content"]) for turn in row.prompt]
    rejected = (row.rejected or "").strip() if row.kind == "pair" else ""
    return (row.kind, *turns, row.chosen.strip(), rejected)


def _split(
    store: Store, rows: Sequence[Row], held_out: float, persist: bool
) -> tuple[list[Row], list[Dropped]]:
    items = split_items(store, dict.fromkeys(row.message_id for row in rows))
    assignments = assign(store, items, held_out=held_out, persist=persist)
    kept: list[Row] = []
    dropped: list[Dropped] = []
    for row in rows:
        assignment = assignments[row.message_id]
        if assignment is None:
            dropped.append(_drop(row, "bridges train and held-out"))
        else:
            kept.append(replace(row, cluster=assignment.cluster, side=assignment.side))
    return kept, dropped


def _drop(row: Row, reason: str) -> Dropped:
    return Dropped(row.message_id, reason, row.sources, row.people, row.chosen)


def _explain_unused(store: Store, used: set[str]) -> Iterable[Dropped]:
    """Return the feedback that became neither a row nor a drop yet. Signals are not feedback to
    learn from, so they are left out."""
    sql = "select * from feedback where kind in ('thumb', 'edit', 'comment') order by rowid"
    given = [Feedback.from_row(row) for row in store.rows(sql)]
    newest = {(entry.message_id, entry.person, entry.kind): entry.id for entry in given}
    pending = pending_edits(store)
    for entry in given:
        latest = newest[entry.message_id, entry.person, entry.kind] == entry.id
        if entry.id not in used and (latest or entry.kind == "comment"):
            text = entry.value.get("text") or json.dumps(entry.value)
            yield Dropped(
                entry.message_id, _reason(entry, pending), [entry.id], [entry.person], text
            )


def _reason(entry: Feedback, pending: Collection[str]) -> str:
    if entry.kind == "comment":
        return "a comment is for the reviewer to read"
    if entry.kind == "thumb":
        return "thumb taken back" if entry.value["up"] is None else "thumb alone: kept for KTO"
    return "waits for a reviewer" if entry.id in pending else "a reviewer decided otherwise"
