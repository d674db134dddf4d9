"""The stream of one answer: an engine appends tokens and text, callers iterate or poll."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """The log probability of a token that was chosen, and (token, its own) of the likeliest."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Stream:
    """One answer on its way: iterate for text deltas; the numbers are there after the end.

    Iterating never raises: an answer that broke off has `finish == "error"` and says why in
    `error`. The engine's side calls `append_token` and `end`; `cancel` may come from any thread.

    Who iterates is woken at every token, and takes the interpreter from the engine each time. Many
    streams cost less when followed with `on_update` and read now and then: `deltas` only grow.
    """

    def __init__(self, prompt_tokens: int, on_cancel: Callable[[], None] = lambda: None) -> None:
        self.prompt_tokens = prompt_tokens
        self.ids: list[int] = []
        self.deltas: list[str] = []
        """The text so far, as it came."""
        self.logprobs: list[TokenLogprob] = []
        """One for each of `ids`, if the request asks for logprobs; there before its delta is."""
        self.token_counts: list[int] = []
        """How many of `ids` had come when each delta went out; there before the delta is."""
        self.finish: FinishReason | None = None
        self.error: str | None = None
        self.first_token_ms: float | None = None
        self.total_ms: float | None = None
        self.reported_tokens: int | None = None
        """The number of tokens, where a server tells that and not which they are."""
        self._started = time.monotonic()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._callback: Callable[[], None] = lambda: None
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._on_cancel = on_cancel

    @property
    def text(self) -> str:
        """All that has come so far."""
        return "".join(self.deltas)

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated, the end token included."""
        return len(self.ids) if self.reported_tokens is None else self.reported_tokens

    @property
    def cancelled(self) -> bool:
        """True once someone asked to stop; the engine ends the stream at its next step."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop this answer; what has come so far stays in `text`."""
        self._cancelled.set()
        if self.finish is None:
            self._on_cancel()

    def on_update(self, callback: Callable[[], None]) -> None:
        """Have `heard` called when the first text is there and when the answer has ended, perhaps
        more than once each; mostly on the engine's thread, so it has to return at once."""
        self._callback = callback
        if self.finish is not None:
            self._notify_end()
        elif self.deltas:
            callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the end; True if it came in time."""
        return self._ended.wait(timeout)

    def __iter__(self) -> Iterator[str]:
        while (delta := self._queue.get()) is not None:
            yield delta
        self._queue.put(None)  # a second iteration ends at once and does not hang

    def append_token(self, token: int, delta: str) -> None:
        """The engine's side: one more token, and the text it makes certain (may be empty)."""
        self.mark_first_token()
        self.ids.append(token)
        self.append_text(delta)

    def mark_first_token(self) -> None:
        """The engine's side: the first token is there; `append_token` records it too."""
        if self.first_token_ms is None:
            self.first_token_ms = self._elapsed_ms()

    def append_text(self, delta: str) -> None:
        """The engine's side: text that was held back and is now certain."""
        if delta:
            self.token_counts.append(len(self.ids))
            self.deltas.append(delta)
            self._queue.put(delta)
            if len(self.deltas) == 1:
                self._callback()

    def end(self, finish: FinishReason, error: str | None = None) -> None:
        """The engine's side: the last word, exactly once."""
        if self.finish is None:
            self.total_ms = self._elapsed_ms()
            self.error = error
            self.finish = finish
            self._ended.set()
            self._queue.put(None)
            self._notify_end()

    def _notify_end(self) -> None:
        """Nothing comes after it, so the listener is let go: together they would be a cycle."""
        heard, self._callback = self._callback, lambda: None
        heard()

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._started) * 1000


class StreamCursor:
    """Reads a stream in batches while another thread writes it: every delta once, then the end."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.position = 0
        """How many deltas have been taken."""

    def take(self) -> tuple[list[str], bool]:
        """Return the deltas that came since the last call, and whether they are the last ones."""
        # Whether it has ended is read first: nothing comes after the end. Read the other way
        # round, text that came with the end between the two reads would be lost.
        ended = self._stream.finish is not None
        deltas = self._stream.deltas[self.position :]
        self.position += len(deltas)
        return deltas, ended
