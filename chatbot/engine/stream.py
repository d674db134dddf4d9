"""Carries one answer: an engine appends tokens and text, callers iterate or poll."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from feedback.db.well_formed import to_well_formed

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """Holds the log probability of a chosen token, and of the likeliest tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log probability), likeliest first."""


class Stream:
    """Carries one answer from an engine's thread to its reader, who iterates for text deltas.

    Iterating never raises: an answer that broke off has ``finish == "error"`` and the reason in
    ``error``. Counts and times are final once ``finish`` is set. An engine calls `append_token`
    and `end`; `cancel` may be called from any thread.

    Iterating wakes the reader at every token, which takes the interpreter (the GIL) from the
    engine each time. Many streams cost less when read in batches with a `StreamCursor`, now and
    then, after `on_update` has announced the first text.
    """

    def __init__(self, prompt_tokens: int, on_cancel: Callable[[], None] = lambda: None) -> None:
        self.prompt_tokens = prompt_tokens
        self.ids: list[int] = []
        """The token ids generated so far, the end token included."""
        self.deltas: list[str] = []
        """The pieces of text so far; it only grows."""
        self.thoughts: list[str] = []
        """The pieces of the thought before the text; all are there before the first of `deltas`."""
        self.thought_tokens = 0
        """How many of `ids` are the thought's, with its marks; set before its text is appended."""
        self.thought_ms: float | None = None
        """How long the model thought; None where it did not, and while it does."""
        self.logprobs: list[TokenLogprob] = []
        """One for each of `ids` if the request asks for logprobs; appended before its delta."""
        self.token_counts: list[int] = []
        """For each delta, the length of `ids` when it was appended; appended before the delta."""
        self.finish: FinishReason | None = None
        """Why the answer ended; None while it streams."""
        self.error: str | None = None
        """Why the answer broke off, where it did."""
        self.first_token_ms: float | None = None
        self.total_ms: float | None = None
        self.reported_tokens: int | None = None
        """The number of generated tokens, where a server reports it without the token ids."""
        self._started = time.monotonic()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._callback: Callable[[], None] = lambda: None
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._on_cancel = on_cancel

    @property
    def text(self) -> str:
        """Return the text so far."""
        return "".join(self.deltas)

    @property
    def thought(self) -> str:
        """Return the thought so far; empty where there is none."""
        return "".join(self.thoughts)

    @property
    def completion_tokens(self) -> int:
        """Return how many tokens were generated, the end token included."""
        return len(self.ids) if self.reported_tokens is None else self.reported_tokens

    @property
    def cancelled(self) -> bool:
        """Tell whether `cancel` was called; the engine ends the stream at its next step."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask the engine to stop this answer; what has come so far stays in `text`."""
        self._cancelled.set()
        if self.finish is None:
            self._on_cancel()

    def on_update(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the first text has come and when the answer has ended.

        It may be called more than once for each, mostly on the engine's thread, so it must return
        at once. A stream has one callback: a later call replaces it.
        """
        self._callback = callback
        if self.finish is not None:
            self._notify_end()
        elif self.deltas or self.thoughts:
            callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the answer has ended, at most ``timeout`` seconds; tell whether it has."""
        return self._ended.wait(timeout)

    def __iter__(self) -> Iterator[str]:
        """Yield each delta as it comes, until the answer has ended."""
        while (delta := self._queue.get()) is not None:
            yield delta
        self._queue.put(None)  # a second iteration ends at once and does not hang

    def append_token(self, token: int, delta: str, thought: str = "") -> None:
        """Append a generated token and the text that it completes, which may be empty.

        Called by the engine, as are the four methods below.
        """
        self.mark_first_token()
        self.ids.append(token)
        self.append_thought(thought)
        self.append_text(delta)

    def mark_first_token(self) -> None:
        """Record the time to the first token, once; `append_token` does so too."""
        if self.first_token_ms is None:
            self.first_token_ms = self._elapsed_ms()

    def append_thought(self, delta: str) -> None:
        """Append text of the thought."""
        if delta:
            self.thoughts.append(to_well_formed(delta))
            if len(self.thoughts) == 1:
                self._callback()

    def add_thought_tokens(self, ids: list[int]) -> None:
        """Count the tokens of a thought whose text came without them; they have no log probability
        of their own."""
        self.ids += ids
        self.logprobs += [TokenLogprob(token, 0.0) for token in ids]
        self.thought_tokens = len(self.ids)

    def append_text(self, delta: str) -> None:
        """Append text that was held back (half a character, a possible stop string).

        What no store can hold is replaced here, so that what is stored is what was sent.
        """
        if delta:
            delta = to_well_formed(delta)
            self.token_counts.append(len(self.ids))
            self.deltas.append(delta)
            self._queue.put(delta)
            if len(self.deltas) == 1:
                self._end_thought()
                self._callback()

    def end(self, finish: FinishReason, error: str | None = None) -> None:
        """End the answer and wake every reader; later calls change nothing."""
        if self.finish is None:
            self.total_ms = self._elapsed_ms()
            self.error = error
            self._end_thought()
            self.finish = finish  # set last: readers take it for the sign that all else is there
            self._ended.set()
            self._queue.put(None)
            self._notify_end()

    def _end_thought(self) -> None:
        if self.thoughts and self.thought_ms is None:
            self.thought_ms = self._elapsed_ms() - (self.first_token_ms or 0.0)

    def _notify_end(self) -> None:
        # The callback is dropped, for it may hold its reader, which holds this stream: a cycle
        # that would live until the garbage collector runs.
        callback, self._callback = self._callback, lambda: None
        callback()

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._started) * 1000


class StreamCursor:
    """Reads a stream in batches while an engine's thread writes it: each delta once."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.position = 0
        """How many deltas have been taken."""
        self._num_thoughts = 0

    def take(self) -> tuple[list[str], bool]:
        """Return the deltas that came since the last call, and whether they are the last ones."""
        # Whether it has ended is read first: nothing comes after the end. Read the other way
        # round, text that came with the end between the two reads would be lost.
        ended = self._stream.finish is not None
        deltas = self._stream.deltas[self.position :]
        self.position += len(deltas)
        return deltas, ended

    def take_thoughts(self) -> list[str]:
        """Return the pieces of the thought that came since the last call. Call it after `take`:
        then they are all that comes before what that returned."""
        thoughts = self._stream.thoughts[self._num_thoughts :]
        self._num_thoughts += len(thoughts)
        return thoughts
