"""Finds old answers that are no longer right, so that they are neither replayed nor expected."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from feedback.similarity import content_words, normalise_text, trigram_similarity

SAME_ANSWER_SIMILARITY = 0.9
"""Trigram similarity from which an expected answer is one that a reviewer has corrected."""
CATCH_ALL_QUESTIONS = 20
"""An answer to at least so many questions with nothing in common is no answer to any of them."""

Dialogue = dict[str, Any]


def partition_outdated(
    rows: Iterable[Dialogue], rejected_answers: Iterable[str]
) -> tuple[list[Dialogue], list[Dialogue]]:
    """Return the rows that still hold, and those whose answer a reviewer has corrected.

    A row is ``{"messages": [...]}`` or ``{"prompt": [...], "completion": [...]}``. An answer such
    as "I don't know that" may be wrong for one question and stays right for all the others: so
    the answer to many unlike questions is never outdated.
    """
    rows = list(rows)
    corrected = {normalise_text(answer): answer for answer in rejected_answers if answer.strip()}
    questions: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        questions[normalise_text(_answer(row))].append(_question(row))
    outdated_answers = {
        answer
        for answer, answered in questions.items()
        if _matches_any(answer, corrected) and not _is_catch_all(answered)
    }
    kept = [row for row in rows if normalise_text(_answer(row)) not in outdated_answers]
    dropped = [row for row in rows if normalise_text(_answer(row)) in outdated_answers]
    return kept, dropped


def _matches_any(answer: str, corrected: Mapping[str, str]) -> bool:
    return answer in corrected or any(
        trigram_similarity(answer, other) >= SAME_ANSWER_SIMILARITY for other in corrected
    )


def _is_catch_all(questions: Sequence[str]) -> bool:
    """Tell whether these are many questions, and no word is in more than a quarter of them."""
    shared = Counter(word for question in questions for word in content_words(question))
    most = max(shared.values(), default=0)
    return len(questions) >= CATCH_ALL_QUESTIONS and most * 4 <= len(questions)


def _turns(row: Dialogue) -> Sequence[Mapping[str, str]]:
    return row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]


def _answer(row: Dialogue) -> str:
    return _turns(row)[-1]["content"]


def _question(row: Dialogue) -> str:
    """Return the last line of the question; exemplars, if any, are before it."""
    return _turns(row)[-2]["content"].strip().rpartition("\n")[2]
