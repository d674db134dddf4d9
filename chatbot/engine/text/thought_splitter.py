"""Splits what a model generates into its thought and the answer after it, by the base's marks."""

from itertools import takewhile
from operator import eq
from typing import Literal

from chatbot.engine.protocol import Sampling
from chatbot.model.thought_format import ThoughtFormat


class ThoughtSplitter:
    """Splits text that comes in pieces of any size, control tokens written out.

    The thought comes back without the white space around it, and so does the beginning of an answer
    after one. Text that begins with no mark is all answer, as it stands.
    """

    def __init__(self, marks: ThoughtFormat, *, opened: bool) -> None:
        """Begin inside a thought if the prompt has ``opened`` it."""
        self.marks = marks.opening + marks.closing
        self._opening, self._closing = marks.opening_marker, marks.closing_marker
        self._answer_mark = _answer_mark(self._opening, self._closing)
        self.phase: Literal["start", "thought", "answer"] = "thought" if opened else "start"
        self.trims = opened
        """Whether white space that comes now belongs to no text."""
        self.marked = opened
        """Whether the text has a mark of either."""
        self._held = ""

    def add(self, text: str) -> tuple[str, str]:
        """Return what is certain now: more of the thought, and more of the answer."""
        text, self._held = self._held + text, ""
        if self.phase == "start":
            text = self._open(text)
        if self.phase == "thought":
            return self._split(text)
        return "", "" if self.phase == "start" else self._trimmed(text)

    def close(self) -> None:
        """End the thought here, as its closing mark would."""
        self._held, self.phase, self.trims = "", "answer", True

    def _open(self, text: str) -> str:
        """Find out with what the text begins; return what follows the mark."""
        begun = text.lstrip()
        if begun.startswith(self._opening):
            self.phase, self.trims, self.marked = "thought", True, True
            return begun.removeprefix(self._opening)
        if begun.startswith(self._answer_mark):
            self.phase, self.trims, self.marked = "answer", True, True
            return begun.removeprefix(self._answer_mark)
        if any(mark.startswith(begun) for mark in (self._opening, self._answer_mark)):
            self._held = text
            return ""
        self.phase = "answer"
        return text

    def _split(self, text: str) -> tuple[str, str]:
        thought, closing, answer = text.partition(self._closing)
        if closing:
            thought = self._trimmed(thought.rstrip())
            self.phase, self.trims = "answer", True
            return thought, self._trimmed(answer)
        certain = text[: len(text) - overlap(text, self._closing)].rstrip()
        self._held = text[len(certain) :]
        return self._trimmed(certain), ""

    def _trimmed(self, text: str) -> str:
        if self.trims:
            text = text.lstrip()
            self.trims = not text
        return text


def split_thoughts(marks: ThoughtFormat | None, sampling: Sampling) -> ThoughtSplitter | None:
    """Return the splitter of an answer; None where the base does not think."""
    if marks is None:
        return None
    return ThoughtSplitter(marks, opened=marks.prefilled and sampling.thinking > 0)


def _answer_mark(opening: str, closing: str) -> str:
    """Return what opens an answer without a thought: the closing, from where it is most like the
    opening on. Of gpt-oss that is the final channel, without the turn before it."""
    return max(
        (closing[start:] for start in range(len(closing))),
        key=lambda end: sum(1 for _ in takewhile(bool, map(eq, end, opening))),
    )


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of ``text`` that ``mark`` begins with."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)
