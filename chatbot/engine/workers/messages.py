"""Defines the messages between the server and a worker, and keeps streams alike on both sides."""

from dataclasses import dataclass

from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import FinishReason, Stream, StreamCursor, TokenLogprob


@dataclass(frozen=True)
class WorkerConfig:
    """Tells a starting worker which base to load and how to serve it."""

    base: str
    revision: str | None
    fingerprint: str
    """The fingerprint that the loaded weights must have."""
    settings: EngineSettings
    known_threads: int = 0
    """The number of threads that another worker found to suit the model; 0: not known."""


@dataclass(frozen=True)
class WorkerInfo:
    """Describes a worker that is ready for requests."""

    slots: int
    max_length: int
    threads: int
    device: str
    num_parameters: int
    weight_bytes: int
    """Bytes of its weights, over all layouts in which it holds them."""
    scales_with_cores: bool = False
    """Whether it computes on as many cores as `WorkerHandle.set_cores` grants it."""


@dataclass(frozen=True)
class StreamUpdate:
    """Holds what one stream has gained since its last update."""

    deltas: list[tuple[list[int], str]]
    """(token ids, the text that they complete)."""
    logprobs: list[TokenLogprob]
    end: tuple[FinishReason, str | None] | None = None
    """Why it ended, and the error if it broke off; None while it streams."""
    thought: str = ""
    """What its thought has gained, all of it before the deltas."""
    thought_tokens: int = 0
    """How many tokens the thought has."""


@dataclass(frozen=True)
class CallResult:
    """Answers a `WorkerHandle.call` with its result or its error."""

    call_id: int
    result: object = None
    error: Exception | None = None


class UpdateCollector:
    """Collects what one stream has gained since the last update was sent."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._cursor = StreamCursor(stream)
        self._num_ids = 0
        """How many tokens have been sent."""

    def collect(self) -> StreamUpdate | None:
        """Return what has not been sent yet; None if nothing new has come."""
        stream, first_id, first_delta = self.stream, self._num_ids, self._cursor.position
        # Counted before the deltas are taken: a token whose text comes in between would otherwise
        # be sent without it, and the text would claim tokens that came after it.
        num_ids = len(stream.ids)
        texts, ended = self._cursor.take()
        if ended:
            num_ids = len(stream.ids)  # the last tokens may have no text, and all are there now
        thought = "".join(self._cursor.take_thoughts())
        counts = stream.token_counts[first_delta : self._cursor.position]
        deltas = [(self._take_ids(count), text) for count, text in zip(counts, texts, strict=True)]
        if self._num_ids < num_ids:
            deltas.append((self._take_ids(num_ids), ""))
        if not deltas and not thought and not ended:
            return None
        end = (stream.finish, stream.error) if stream.finish and ended else None
        logprobs = stream.logprobs[first_id : self._num_ids]
        return StreamUpdate(deltas, logprobs, end, thought, stream.thought_tokens)

    def _take_ids(self, stop: int) -> list[int]:
        """Return the tokens up to number ``stop`` that have not been sent."""
        ids = self.stream.ids[self._num_ids : stop]
        self._num_ids = stop
        return ids


def apply_update(stream: Stream, update: StreamUpdate) -> None:
    """Append to ``stream`` what an update says of the same stream in another process."""
    stream.logprobs += update.logprobs
    stream.thought_tokens = update.thought_tokens
    if update.thought:
        stream.mark_first_token()
    stream.append_thought(update.thought)
    for ids, delta in update.deltas:
        if ids:
            stream.mark_first_token()
        stream.ids += ids
        stream.append_text(delta)
    if update.end is not None:
        stream.end(*update.end)
