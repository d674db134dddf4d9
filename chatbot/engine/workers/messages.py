"""What the server and a worker say to each other."""

from dataclasses import dataclass

from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import FinishReason, Stream, TokenLogprob


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
    """What has been told of a stream so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._ids = self._deltas = 0

    def collect(self) -> StreamUpdate | None:
        """What has not been told yet, if there is anything."""
        stream, first = self.stream, self._ids
        finish = stream.finish  # asked first: nothing comes after it
        count = len(stream.ids)  # before the texts: one that is not there yet reaches further
        deltas = stream.deltas[self._deltas :]
        pieces = [
            (self._take_ids(reach), delta)
            for delta, reach in zip(deltas, stream.token_counts[self._deltas :], strict=False)
        ]
        self._deltas += len(pieces)
        if self._ids < count:
            pieces.append((self._take_ids(count), ""))
        if not pieces and finish is None:
            return None
        end = None if finish is None else (finish, stream.error)
        return StreamUpdate(pieces, stream.logprobs[first : self._ids], end)

    def _take_ids(self, reach: int) -> list[int]:
        """The tokens that are told with a piece."""
        ids = self.stream.ids[self._ids : reach]
        self._ids = reach
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
