"""What an engine is: text goes in as tokens with the name of an adapter, text streams out.

Every engine (in-process, remote) keeps this protocol, so the rest of the house never asks which
one it talks to. An adapter's id is its content hash: same id, same weights, for ever.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from feedback.errors import TalkbackError

BASE = "base"
"""The adapter id that always exists: the base model with no adapter."""

Finish = Literal["stop", "length", "cancelled", "error"]


class EngineError(TalkbackError):
    """The engine cannot do what was asked."""


class Busy(EngineError):
    """Every slot and every place in the queue is taken; `retry_after` is in seconds."""

    def __init__(self, waiting: int, retry_after: float = 1.0) -> None:
        super().__init__(f"{waiting} requests are waiting already. Try again in {retry_after:g} s.")
        self.retry_after = retry_after


class UnknownAdapter(EngineError):
    """The request names an adapter that is not loaded."""

    def __init__(self, adapter: str, loaded: list[str]) -> None:
        super().__init__(f"Adapter {adapter!r} is not loaded. Loaded: {', '.join(loaded)}.")


class TooLong(EngineError):
    """The prompt leaves no room for an answer."""


class Unreachable(EngineError):
    """Nobody answers now who can; the same request may well be answered later."""


def check_prompt(prompt_ids: list[int], most: int) -> None:
    """Refuse a prompt of no tokens, and one that leaves no room for an answer; TooLong."""
    if not prompt_ids:
        raise EngineError("The prompt is empty. Send at least one token.")
    if len(prompt_ids) >= most:
        raise TooLong(
            f"The prompt has {len(prompt_ids)} tokens and {most} is the most for "
            "prompt and answer together. Shorten it."
        )


class Closed(EngineError):
    """The engine has been closed."""


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token; temperature 0 is greedy, top_k 0, top_p 1, min_p 0 cut nothing.

    The same seed and prompt give the same text whatever else is in the batch: bit for bit on our
    own kernels. Where torch computes, as far as the logits are the same: in float32 they are but
    for rounding, in bfloat16 two tokens that lie within a rounding of each other may change places
    with the size of the batch.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""
    logprobs: int | None = None
    """Tell each token's log probability, and those of so many likeliest; None: tell none."""


@dataclass(frozen=True)
class Chance:
    """The log probability of a token that was chosen, and (token, its own) of the likeliest."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Request:
    """One prompt as token ids (see `base.encode`), the adapter that answers it, and how."""

    prompt_ids: list[int]
    adapter: str = BASE
    sampling: Sampling = field(default_factory=Sampling)


class Stream:
    """One answer on its way: iterate for text deltas; the numbers are there after the end.

    Iterating never raises: an answer that broke off has `finish == "error"` and says why in
    `error`. The engine's side calls `put` and `end`; `cancel` may come from any thread.

    Who iterates is woken at every token, and takes the interpreter from the engine each time. Many
    streams are cheaper to `listen` to, and to look at now and then: at `deltas`, which only grow.
    """

    def __init__(self, prompt_tokens: int, wake: Callable[[], None] = lambda: None) -> None:
        self.prompt_tokens = prompt_tokens
        self.ids: list[int] = []
        self.deltas: list[str] = []
        """The text so far, as it came."""
        self.chances: list[Chance] = []
        """One for each of `ids`, if the request asks for logprobs; there before its delta is."""
        self.reach: list[int] = []
        """How many of `ids` had come when each delta went out; there before the delta is."""
        self.finish: Finish | None = None
        self.error: str | None = None
        self.first_token_ms: float | None = None
        self.total_ms: float | None = None
        self.counted: int | None = None
        """The number of tokens, where a server tells that and not which they are."""
        self._born = time.monotonic()
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._heard: Callable[[], None] = lambda: None
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._wake = wake

    @property
    def text(self) -> str:
        """All that has come so far."""
        return "".join(self.deltas)

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated, the end token included."""
        return len(self.ids) if self.counted is None else self.counted

    @property
    def cancelled(self) -> bool:
        """True once someone asked to stop; the engine ends the stream at its next step."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop this answer; what has come so far stays in `text`."""
        self._cancelled.set()
        if self.finish is None:
            self._wake()

    def listen(self, heard: Callable[[], None]) -> None:
        """Have `heard` called when the first text is there and when the answer has ended, perhaps
        more than once each; mostly on the engine's thread, so it has to return at once."""
        self._heard = heard
        if self.finish is not None:
            self._end_heard()
        elif self.deltas:
            heard()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the end; True if it came in time."""
        return self._ended.wait(timeout)

    def __iter__(self) -> Iterator[str]:
        while (delta := self._news.get()) is not None:
            yield delta
        self._news.put(None)  # a second iteration ends at once and does not hang

    def put(self, token: int, delta: str) -> None:
        """The engine's side: one more token, and the text it makes certain (may be empty)."""
        self.begin()
        self.ids.append(token)
        self.say(delta)

    def begin(self) -> None:
        """The engine's side: the first token is there; `put` says so too."""
        if self.first_token_ms is None:
            self.first_token_ms = self._age()

    def say(self, delta: str) -> None:
        """The engine's side: text that was held back and is now certain."""
        if delta:
            self.reach.append(len(self.ids))
            self.deltas.append(delta)
            self._news.put(delta)
            if len(self.deltas) == 1:
                self._heard()

    def end(self, finish: Finish, error: str | None = None) -> None:
        """The engine's side: the last word, exactly once."""
        if self.finish is None:
            self.total_ms = self._age()
            self.error = error
            self.finish = finish
            self._ended.set()
            self._news.put(None)
            self._end_heard()

    def _end_heard(self) -> None:
        """Nothing comes after it, so the listener is let go: together they would be a cycle."""
        heard, self._heard = self._heard, lambda: None
        heard()

    def _age(self) -> float:
        return (time.monotonic() - self._born) * 1000


@runtime_checkable
class Engine(Protocol):
    """Streams answers of many adapters at once; every method may be called from any thread."""

    max_length: int
    """Most tokens of prompt and answer together."""
    waits: bool
    """Whether `submit` waits for a network."""

    @property
    def trouble(self) -> str | None:
        """Why nobody can be answered now; None when all is well."""

    def load(self, adapter_id: str, folder: Path) -> None:
        """Verify and load an adapter; blocks until it can be asked. Loaded already: nothing."""

    def unload(self, adapter_id: str) -> None:
        """Take no new requests for it; it leaves memory when its last stream has ended."""

    def adapters(self) -> list[str]:
        """What can be asked now, `BASE` first."""

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises `Busy`, `UnknownAdapter`, `TooLong` or `Closed`."""

    def stats(self) -> dict[str, Any]:
        """Numbers for a status page: streams running, waiting, tokens so far, adapters."""

    def close(self) -> None:
        """End every stream as cancelled and free the model."""
