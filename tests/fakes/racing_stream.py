"""A stream that changes between two reads, as when an engine's thread runs in between."""

from collections.abc import Callable
from typing import Any

from chatbot.engine.stream import Stream

SHARED = ("finish", "ids", "deltas", "token_counts", "logprobs")
"""What an engine's thread changes while another thread reads it."""


class RacingStream(Stream):
    """Runs a callback once, right after the n-th read of a `SHARED` attribute."""

    _reads_left = 0
    _meanwhile: Callable[[], None] | None = None

    def race(self, reads: int, meanwhile: Callable[[], None]) -> None:
        """Have ``meanwhile`` called after so many reads; each read sees what was there before."""
        self._reads_left, self._meanwhile = reads, meanwhile

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in SHARED and (meanwhile := self._meanwhile) is not None:
            self._reads_left -= 1
            if not self._reads_left:
                self._meanwhile = None
                value = list(value) if isinstance(value, list) else value
                meanwhile()
        return value
