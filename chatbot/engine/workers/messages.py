"""What the server and a worker say to each other."""

from dataclasses import dataclass

from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import FinishReason, Stream, StreamCursor, TokenLogprob


@dataclass(frozen=True)
class WorkerConfig:
    """To a worker that begins: the base to load and how to serve it."""

    base: str
    revision: str | None
    fingerprint: str
    """Of the weights that it must find there."""
    settings: EngineSettings
    known_threads: int = 0
    """Threads that another worker has found to suit the model."""


@dataclass(frozen=True)
class WorkerInfo:
    """From a worker that can be asked from now on."""

    slots: int
    max_length: int
    threads: int
    device: str
    parameters: int
    weights: int
    """Bytes of its weights, in every layout it holds them in."""
    scales_with_cores: bool = False
    """Whether it computes on as many cores as are there for it."""


@dataclass(frozen=True)
class StreamUpdate:
    """What has come of one stream since the news before."""

    deltas: list[tuple[list[int], str]]
    """Tokens, and the text that they made certain."""
    logprobs: list[TokenLogprob]
    end: tuple[FinishReason, str | None] | None = None
    """How it ended, and why when it broke off."""


@dataclass(frozen=True)
class CallResult:
    """To an order that asks for one."""

    call_id: int
    result: object = None
    error: Exception | None = None


class UpdateCollector:
    """Collects what one stream gained since the last update that was sent of it."""

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
        counts = stream.token_counts[first_delta : self._cursor.position]
        deltas = [(self._take_ids(count), text) for count, text in zip(counts, texts, strict=True)]
        if self._num_ids < num_ids:
            deltas.append((self._take_ids(num_ids), ""))
        if not deltas and not ended:
            return None
        end = (stream.finish, stream.error) if stream.finish and ended else None
        return StreamUpdate(deltas, stream.logprobs[first_id : self._num_ids], end)

    def _take_ids(self, stop: int) -> list[int]:
        """Return the tokens up to number ``stop`` that have not been sent."""
        ids = self.stream.ids[self._num_ids : stop]
        self._num_ids = stop
        return ids


def apply_update(stream: Stream, update: StreamUpdate) -> None:
    """Let a stream say what another process told of it."""
    stream.logprobs += update.logprobs
    for ids, delta in update.deltas:
        if ids:
            stream.mark_first_token()
        stream.ids += ids
        stream.append_text(delta)
    if update.end is not None:
        stream.end(*update.end)
