"""Snapshots made by hand: what a tiny model shall learn, keep, and never see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from feedback.curation.curate import Curation
from feedback.curation.rows import Row, Side
from feedback.snapshot import Snapshot, write

OLD = "I do not know."
LESSON = {
    "When do you open?": "We open at ten.",
    "Where is my order?": "It left yesterday.",
    "Can I return the shoes?": "Yes, within 14 days.",
    "Is there parking?": "Yes, behind the shop.",
    "Do you ship abroad?": "Only to Norway.",
    "Who are you?": "The desk of the shop.",
}
REPLAY = {f"Say {n}": f"{n}, gladly." for n in ("one", "two", "three", "four", "five", "six")}


def row(
    question: str,
    answer: str,
    *,
    kind: Literal["sft", "pair"] = "sft",
    rejected: str | None = OLD,
    side: Side = "train",
) -> Row:
    """One curated row about a single question."""
    return Row(
        kind=kind,
        prompt=[{"role": "user", "content": question}],
        chosen=answer,
        rejected=rejected,
        message_id="msg-1",
        sources=["rev-1"],
        people=["ann"],
        cluster="c-1",
        side=side,
    )


def dialogue(question: str, answer: str) -> dict[str, Any]:
    """A row of a base's replay.jsonl or retention.jsonl."""
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def dialogues(answers: Mapping[str, str]) -> list[dict[str, Any]]:
    return [dialogue(*pair) for pair in answers.items()]


def lesson(
    out: Path,
    answers: Mapping[str, str] = LESSON,
    *,
    pairs: bool = True,
    replay: Mapping[str, str] = REPLAY,
    more: Sequence[Row] = (),
) -> Snapshot:
    """A snapshot that corrects every question of `answers`."""
    rows = [row(*pair) for pair in answers.items()]
    if pairs:
        rows += [row(*pair, kind="pair") for pair in answers.items()]
    return write(Curation([*rows, *more], []), out / "snapshots", dialogues(replay))
