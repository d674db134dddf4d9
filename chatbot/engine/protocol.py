"""Defines what every engine offers: requests of token ids for an adapter go in, text streams out.

Callers depend on this protocol and never on a kind of engine (local, workers, remote). An
adapter's id is its content hash: the same id always means the same weights.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from chatbot.engine.stream import Stream
from feedback.errors import TalkbackError

BASE = "base"
"""The adapter id that always exists: the base model without an adapter."""

TOKEN_COUNTERS = ("prompt", "recalled", "recalls", "decoded", "guessed", "steps")
"""Counters in `Engine.stats`: prompt tokens computed; prompt tokens found in the prefix cache, and
in how many prompts; tokens generated, and those of them that prompt lookup guessed, which took no
step of their own; decode steps."""


class EngineError(TalkbackError):
    """Says that the engine cannot do what was asked."""


class EngineBusyError(EngineError):
    """Says that all slots and the queue are full; ``retry_after`` is in seconds."""

    def __init__(self, waiting: int, retry_after: float = 1.0) -> None:
        super().__init__(f"{waiting} requests are waiting already. Try again in {retry_after:g} s.")
        self.retry_after = retry_after


class UnknownAdapterError(EngineError):
    """Says that the request names an adapter that is not loaded."""

    def __init__(self, adapter: str, loaded: list[str]) -> None:
        super().__init__(f"Adapter {adapter!r} is not loaded. Loaded: {', '.join(loaded)}.")


class PromptTooLongError(EngineError):
    """Says that the prompt leaves no token for an answer."""


class UnreachableError(EngineError):
    """Says that no process or server can answer now; the same request may succeed later."""


class EngineClosedError(EngineError):
    """Says that the engine has been closed."""

    def __init__(
        self, message: str = "The engine has been closed. Start the server again."
    ) -> None:
        super().__init__(message)


@dataclass(frozen=True)
class Sampling:
    """Holds how the next token is chosen; temperature 0 is greedy, top_k 0, top_p 1 and min_p 0
    cut nothing.

    The same seed and prompt give the same text whatever else is in the batch: bit for bit on our
    own kernels. Where torch computes, this holds as far as the logits are equal: in float32 they
    are, up to rounding; in bfloat16 two tokens whose logits differ by less than a rounding may
    swap with the size of the batch.
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
    """(token id, what is added to its logit)."""
    logprobs: int | None = None
    """Record each token's log probability and those of so many likeliest tokens; None: neither."""
    thinking: int = 0
    """Most tokens of a thought before the answer, apart from `max_tokens`; the prompt must be one
    of thinking on. 0: no thought. Ignored where the base does not think."""

    def thought_budget(self, room: int) -> int:
        """Return the most tokens of a thought where ``room`` are left for it and the answer, which
        keeps its `max_tokens`, or half of the room."""
        return min(self.thinking, room - min(self.max_tokens, room // 2))


@dataclass(frozen=True)
class Request:
    """Holds a prompt as token ids (see `chat_template.encode`), its adapter, and how to sample."""

    prompt_ids: list[int]
    adapter: str = BASE
    sampling: Sampling = field(default_factory=Sampling)


@runtime_checkable
class Engine(Protocol):
    """Streams answers from many adapters at once; every method may be called from any thread."""

    max_length: int
    """Most tokens of prompt and answer together."""
    submit_blocks: bool
    """Whether `submit` waits for the network; if so, call it from many threads."""

    @property
    def unavailable_reason(self) -> str | None:
        """Return why no request can be answered now; None while requests are answered."""

    def load(self, adapter_id: str, folder: Path) -> None:
        """Verify an adapter's folder and load it; return once requests may name it.

        Does nothing if it is loaded already. Raises AdapterError, EngineError.
        """

    def unload(self, adapter_id: str) -> None:
        """Refuse new requests for an adapter, and free it when its last stream has ended."""

    def adapters(self) -> list[str]:
        """Return the ids that requests may name, `BASE` first."""

    def submit(self, request: Request) -> Stream:
        """Queue a request and return its stream.

        Raises EngineBusyError, UnknownAdapterError, PromptTooLongError, UnreachableError (where
        the model runs in other processes or servers), EngineClosedError.
        """

    def stats(self) -> dict[str, Any]:
        """Return numbers for a status page: streams running and waiting, `TOKEN_COUNTERS`, and
        the running streams of each adapter."""

    def close(self) -> None:
        """End every stream as cancelled, and free the model."""
