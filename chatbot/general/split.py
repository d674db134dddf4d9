"""Splits the base's answers to the general prompts: two thirds are replayed in training, the others
show what an adapter has forgotten."""

from collections.abc import Iterable, Sequence

from feedback.curation.row_files import Record
from feedback.similarity import content_words, near_duplicates

NEAR = 0.5
"""Trigram similarity from which a prompt is near a question that people have taught."""


def split_answers(rows: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Return the rows that are replayed in training, and those that show what was forgotten.

    Without those that the base answers with nothing. Each row keeps its side whatever else is left
    out.
    """
    spoken = [(i, row) for i, row in enumerate(rows) if row["messages"][-1]["content"].strip()]
    replay = [{**row, "by_base": True} for i, row in spoken if i % 3]
    return replay, [row for i, row in spoken if i % 3 == 0]


def partition_taught(
    rows: Iterable[Record], questions: Iterable[str]
) -> tuple[list[Record], list[Record]]:
    """Return the rows that nobody has taught otherwise, and those near one of the questions: by
    their trigrams, or as all words that say what they are about are at least half of its."""
    rows, questions = list(rows), list(questions)
    asked = {f"row {i}": _question(row) for i, row in enumerate(rows)}
    taught = {f"taught {i}": question for i, question in enumerate(questions)}
    near = {
        key for pair in near_duplicates(asked | taught, NEAR, known=set(taught)) for key in pair
    }
    subjects = [content_words(question) for question in questions]
    for key, text in asked.items():
        words = content_words(text)
        if words and any(
            words <= subject and 2 * len(words) >= len(subject) for subject in subjects
        ):
            near.add(key)
    kept = [row for i, row in enumerate(rows) if f"row {i}" not in near]
    return kept, [row for i, row in enumerate(rows) if f"row {i}" in near]


def _question(row: Record) -> str:
    text: str = row["messages"][-2]["content"]
    return text
