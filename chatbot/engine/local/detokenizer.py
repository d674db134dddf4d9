"""Turns tokens into text piece by piece: never half a character or a part of a stop string."""

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What an incomplete UTF-8 character decodes to."""


class Detokenizer:
    """Decodes the tokens of one stream as they come; all pieces together are the text of all."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        # The text of _ids[_context:_read] has been emitted. These stay in the window because some
        # tokenizers write a token differently at the start of a text than after another.
        self._context, self._read = 0, 0
        self._emitted = ""
        self._held = ""

    def add(self, token: int) -> tuple[str, bool]:
        """Return the text that this token makes certain, and whether a stop string ends it."""
        self._ids.append(token)
        window = self._decode(self._ids[self._context :])
        if window.endswith(REPLACEMENT):
            return "", False
        new = window[len(self._emitted) :]
        self._context, self._read = self._read, len(self._ids)
        self._emitted = self._decode(self._ids[self._context : self._read])
        return self._release(new)

    def flush(self) -> tuple[str, bool]:
        """Return the text still held back at the end, and whether a stop string ends it."""
        window = self._decode(self._ids[self._context :])
        text, stopped = self._release(window[len(self._emitted) :])
        text, self._held = text + self._held, ""
        return text, stopped

    def _release(self, new: str) -> tuple[str, bool]:
        text = self._held + new
        found = [start for s in self._stop if (start := text.find(s)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
