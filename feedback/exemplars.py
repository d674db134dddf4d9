"""Approved answers placed in the prompt, so that a correction works before it is trained."""

from collections.abc import Sequence


def preface(question: str, exemplars: Sequence[tuple[str, str]]) -> str:
    """The last user message: approved (question, answer) pairs first, then the question asked.

    The pairs go into the last message and not into the system message, because every chat
    template has a user turn, and because the history before it keeps its prefix in the cache.
    """
    if not exemplars:
        return question
    pairs = "".join(f"\nQ: {asked}\nA: {answer}" for asked, answer in exemplars)
    return f"Approved answers:{pairs}\n\nQuestion: {question}"
