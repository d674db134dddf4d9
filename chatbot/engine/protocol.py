"""What an engine is: text goes in as tokens with the name of an adapter, text streams out.

Every engine (in-process, remote) keeps this protocol, so the rest of the house never asks which
one it talks to. An adapter's id is its content hash: same id, same weights, for ever.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from chatbot.engine.stream import Stream
from feedback.errors import TalkbackError

BASE = "base"
"""The adapter id that always exists: the base model with no adapter."""

TOKEN_COUNTERS = ("prompt", "recalled", "recalls", "decoded", "guessed", "steps")
"""Prompt tokens read, those spared and in how many prompts, tokens said, those of them that were
guessed and took no step of their own, decode steps."""


class EngineError(TalkbackError):
    """The engine cannot do what was asked."""


class EngineBusyError(EngineError):
    """Every slot and every place in the queue is taken; `retry_after` is in seconds."""

    def __init__(self, waiting: int, retry_after: float = 1.0) -> None:
        super().__init__(f"{waiting} requests are waiting already. Try again in {retry_after:g} s.")
        self.retry_after = retry_after


class UnknownAdapterError(EngineError):
    """The request names an adapter that is not loaded."""

    def __init__(self, adapter: str, loaded: list[str]) -> None:
        super().__init__(f"Adapter {adapter!r} is not loaded. Loaded: {', '.join(loaded)}.")


class PromptTooLongError(EngineError):
    """The prompt leaves no room for an answer."""


class UnreachableError(EngineError):
    """Nobody answers now who can; the same request may well be answered later."""


class EngineClosedError(EngineError):
    """The engine has been closed."""

    def __init__(
        self, message: str = "The engine has been closed. Start the server again."
    ) -> None:
        super().__init__(message)


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
class Request:
    """Holds a prompt as token ids (see `chat_template.encode`), its adapter, and how to sample."""

    prompt_ids: list[int]
    adapter: str = BASE
    sampling: Sampling = field(default_factory=Sampling)


@runtime_checkable
class Engine(Protocol):
    """Streams answers of many adapters at once; every method may be called from any thread."""

    max_length: int
    """Most tokens of prompt and answer together."""
    submit_blocks: bool
    """Whether `submit` waits for a network."""

    @property
    def unavailable_reason(self) -> str | None:
        """Why nobody can be answered now; None when all is well."""

    def load(self, adapter_id: str, folder: Path) -> None:
        """Verify and load an adapter; blocks until it can be asked. Loaded already: nothing."""

    def unload(self, adapter_id: str) -> None:
        """Take no new requests for it; it leaves memory when its last stream has ended."""

    def adapters(self) -> list[str]:
        """What can be asked now, `BASE` first."""

    def submit(self, request: Request) -> Stream:
        """Queue a request and return its stream.

        Raises EngineBusyError, UnknownAdapterError, PromptTooLongError, UnreachableError (where
        the model runs in other processes or servers), EngineClosedError.
        """

    def stats(self) -> dict[str, Any]:
        """Numbers for a status page: streams running, waiting, tokens so far, adapters."""

    def close(self) -> None:
        """End every stream as cancelled and free the model."""
