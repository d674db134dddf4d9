"""Turns tokens into text piece by piece: never half a character or a part of a stop string."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from chatbot.engine.text.thought_splitter import ThoughtSplitter, overlap

REPLACEMENT = "\ufffd"
"""What an incomplete UTF-8 character decodes to."""


class Piece(NamedTuple):
    """Holds what a token adds: to the answer, with whether a stop string ends it, and to the
    thought before it."""

    text: str
    stopped: bool = False
    thought: str = ""


class Detokenizer:
    """Decodes the tokens of one stream as they come; all pieces together are the text of all.

    ``thoughts`` finds the thought in it. Stop strings end the answer alone.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: tuple[str, ...] = (),
        thoughts: ThoughtSplitter | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._thoughts = thoughts
        self.thought_tokens = 0
        """How many tokens the thought has so far, with its marks."""
        self._ids: list[int] = []
        # The text of _ids[_context:_read] has been emitted. These stay in the window because some
        # tokenizers write a token differently at the start of a text than after another.
        self._context, self._read = 0, 0
        self._emitted = ""
        self._held = ""

    @property
    def phase(self) -> str:
        """Return what the next token belongs to: "thought", "answer", or "start" while the first
        tokens may yet become a mark."""
        return self._thoughts.phase if self._thoughts else "answer"

    def add(self, token: int) -> Piece:
        """Return what this token makes certain."""
        self._ids.append(token)
        return self._read_on()

    def add_closing(self, token: int) -> None:
        """Take a token of the mark that ends the thought; it is put in, whatever came before."""
        assert self._thoughts is not None
        self._thoughts.close()
        self._ids.append(token)
        self.thought_tokens = len(self._ids)
        self._read_from(len(self._ids))

    def flush(self) -> Piece:
        """Return the text still held back at the end."""
        if self.phase == "thought":
            return Piece("")
        if self.phase == "start":
            self._take_as_answer()
        window = self._decode(self._ids[self._context :])
        text, stopped, _ = self._release(window[len(self._emitted) :])
        text, self._held = text + self._held, ""
        return Piece(text, stopped)

    def _read_on(self) -> Piece:
        window = self._decode(self._ids[self._context :])
        if window.endswith(REPLACEMENT):
            return Piece("")
        new = window[len(self._emitted) :]
        self._context, self._read = self._read, len(self._ids)
        self._emitted = self._decode(self._ids[self._context : self._read])
        return self._release(new) if self._thoughts is None else self._split(new, self._thoughts)

    def _split(self, new: str, thoughts: ThoughtSplitter) -> Piece:
        before = self.phase
        thought, answer = thoughts.add(new)
        if new and (self.phase == "thought" or thoughts.trims):
            self.thought_tokens = len(self._ids)
        if self.phase != "answer":
            return Piece("", thought=thought)
        if not thoughts.marked:
            self._take_as_answer()
            return self._read_on()
        if before != "answer":
            self._read_from(len(self._ids))
        text, stopped, _ = self._release(answer)
        return Piece(text, stopped, thought)

    def _take_as_answer(self) -> None:
        """Take all tokens so far for the answer, of which control tokens are no text."""
        self._thoughts = None
        self._read_from(0)

    def _read_from(self, start: int) -> None:
        self._context = self._read = start
        self._emitted = ""

    def _release(self, new: str) -> Piece:
        text = self._held + new
        found = [start for s in self._stop if (start := text.find(s)) >= 0]
        if found:
            self._held = ""
            return Piece(text[: min(found)], True)
        keep = max((overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return Piece(text[: len(text) - keep])

    def _decode(self, ids: list[int]) -> str:
        if self._thoughts is not None and self.phase != "answer":
            # Of the control tokens only the marks of a thought are text.
            marks, special = self._thoughts.marks, _special_tokens(self._tokenizer)
            ids = [id for id in ids if special.get(id, "") in marks]
        text = self._tokenizer.decode(
            ids,
            skip_special_tokens=self.phase == "answer",
            clean_up_tokenization_spaces=False,
        )
        return str(text)


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, str]:
    """Return the tokens that are never text, by id."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    return {id: str(token) for id, token in added.items() if token.special}
