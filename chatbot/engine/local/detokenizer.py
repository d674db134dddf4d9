"""From tokens to text, piece by piece: never half a character, never a part of a stop string."""

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What bytes that are no character yet decode to."""


class Detokenizer:
    """The text of one stream as its tokens come; all pieces together are the text of all tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        # Text of _ids[_context:_read] is out. It stays in the window because some tokenizers
        # write a token differently at the start of a text than after another.
        self._context, self._read = 0, 0
        self._emitted = ""
        self._held = ""

    def add(self, token: int) -> tuple[str, bool]:
        """The text that this token makes certain, and whether a stop string ended the answer."""
        self._ids.append(token)
        window = self._decode(self._ids[self._context :])
        if window.endswith(REPLACEMENT):
            return "", False
        new = window[len(self._emitted) :]
        self._context, self._read = self._read, len(self._ids)
        self._emitted = self._decode(self._ids[self._context : self._read])
        return self._release(new)

    def flush(self) -> tuple[str, bool]:
        """What was held back, at the end of an answer that no stop string ended."""
        window = self._decode(self._ids[self._context :])
        text, stopped = self._release(window[len(self._emitted) :])
        text, self._held = text + self._held, ""
        return text, stopped

    def _release(self, new: str) -> tuple[str, bool]:
        text = self._held + new
        found = [at for s in self._stop if (at := text.find(s)) >= 0]
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
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
