"""Writes approved answers into a prompt, in the form that a base goes by.

A model goes by what it has learnt. The starter has learnt one form; another base goes on with
"Q: … A: …" instead of answering, and repeats what stands in turns of its own chat template. Small
ones do so only where it stands there twice: see docs/learning.md.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

from feedback.exemplars import format_exemplars

ExemplarForm = Literal["turns", "best twice", "in question"]
"""``turns``: each a question and its answer, the best one last, where it weighs most. ``best
twice``: only the best one, in two such pairs of turns. ``in question``: as text before the question
in its message, which the starter has learnt."""

FORMS: tuple[ExemplarForm, ...] = get_args(ExemplarForm)
DEFAULT_FORM: ExemplarForm = "turns"

ChatMessages = list[dict[str, str]]
T = TypeVar("T")


def select_shown(form: ExemplarForm, exemplars: Sequence[T]) -> list[T]:
    """Return those of the exemplars, given best first, that a prompt of this form shows."""
    return list(exemplars[:1] if form == "best twice" else exemplars)


def write_question(
    form: ExemplarForm, question: str, exemplars: Sequence[tuple[str, str]]
) -> ChatMessages:
    """Return the messages that end a prompt: the question, and before it approved (question,
    answer) pairs, which are given best first.

    They stand behind the history, which so keeps its prefix in the cache, and next to the question,
    where they weigh most.
    """
    shown = select_shown(form, exemplars)
    if form == "in question":
        return [_message("user", format_exemplars(question, shown))]
    pairs = shown * 2 if form == "best twice" else shown[::-1]
    turns = [
        message
        for asked, answer in pairs
        for message in (_message("user", asked), _message("assistant", answer))
    ]
    return [*turns, _message("user", question)]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
