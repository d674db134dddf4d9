"""Waiting for streams and for what other threads do, never for ever."""

import time
from collections.abc import Callable

from chatbot.engine.protocol import Stream


def until(true: Callable[[], bool], seconds: float = 20) -> float:
    """Wait for what another thread brings about; how long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds, "it never came about"
        time.sleep(0.005)
    return time.monotonic() - began


def ended(stream: Stream) -> Stream:
    assert stream.wait(60), "the stream hangs"
    return stream


def speaks(stream: Stream) -> Stream:
    """The stream, once its first token is there."""
    until(lambda: stream.first_token_ms is not None)
    return stream


def finish(stream: Stream) -> str:
    """All deltas of a stream that must end in time."""
    assert stream.wait(60), "the stream hangs"
    return "".join(stream)
