"""What the server and a worker say to each other."""

from dataclasses import dataclass

from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import FinishReason, Stream, TokenLogprob


@dataclass(frozen=True)
class Order:
    """To a worker that begins: the base to load and how to serve it."""

    base: str
    revision: str | None
    fingerprint: str
    """Of the weights that it must find there."""
    settings: EngineSettings
    tried: int = 0
    """Threads that another worker has found to suit the model."""


@dataclass(frozen=True)
class Ready:
    """From a worker that can be asked from now on."""

    slots: int
    max_length: int
    threads: int
    device: str
    parameters: int
    weights: int
    """Bytes of its weights, in every layout it holds them in."""
    grows: bool = False
    """Whether it computes on as many cores as are there for it."""


@dataclass(frozen=True)
class News:
    """What has come of one stream since the news before."""

    pieces: list[tuple[list[int], str]]
    """Tokens, and the text that they made certain."""
    chances: list[TokenLogprob]
    end: tuple[FinishReason, str | None] | None = None
    """How it ended, and why when it broke off."""


@dataclass(frozen=True)
class Answer:
    """To an order that asks for one."""

    number: int
    result: object = None
    error: Exception | None = None


class Account:
    """What has been told of a stream so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._ids = self._deltas = 0

    def news(self) -> News | None:
        """What has not been told yet, if there is anything."""
        stream, first = self.stream, self._ids
        finish = stream.finish  # asked first: nothing comes after it
        count = len(stream.ids)  # before the texts: one that is not there yet reaches further
        deltas = stream.deltas[self._deltas :]
        pieces = [
            (self._until(reach), delta)
            for delta, reach in zip(deltas, stream.token_counts[self._deltas :], strict=False)
        ]
        self._deltas += len(pieces)
        if self._ids < count:
            pieces.append((self._until(count), ""))
        if not pieces and finish is None:
            return None
        end = None if finish is None else (finish, stream.error)
        return News(pieces, stream.logprobs[first : self._ids], end)

    def _until(self, reach: int) -> list[int]:
        """The tokens that are told with a piece."""
        ids = self.stream.ids[self._ids : reach]
        self._ids = reach
        return ids


def hear(stream: Stream, news: News) -> None:
    """Let a stream say what another process told of it."""
    stream.logprobs += news.chances
    for ids, delta in news.pieces:
        if ids:
            stream.mark_first_token()
        stream.ids += ids
        stream.append_text(delta)
    if news.end is not None:
        stream.end(*news.end)
