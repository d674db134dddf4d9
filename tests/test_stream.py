"""Streams read while they are written: every delta once, and nothing after the end."""

import pytest

from chatbot.engine.stream import Stream, StreamCursor
from tests.fakes.racing_stream import RacingStream


def test_a_cursor_takes_every_delta_once_and_then_the_end() -> None:
    stream = Stream(0)
    cursor = StreamCursor(stream)
    assert cursor.take() == ([], False)
    stream.append_token(1, "We")
    stream.append_token(2, " open")
    assert cursor.take() == (["We", " open"], False)
    assert cursor.take() == ([], False)
    stream.append_token(3, " at ten.")
    stream.end("stop")
    assert cursor.take() == ([" at ten."], True)
    assert cursor.take() == ([], True)


@pytest.mark.parametrize("reads", [1, 2])
def test_what_comes_with_the_end_between_two_reads_is_not_lost(reads: int) -> None:
    stream = RacingStream(0)
    cursor, taken, ended = StreamCursor(stream), list[str](), False

    def finish() -> None:
        stream.append_token(1, "Ten.")
        stream.end("stop")

    stream.race(reads, finish)
    while not ended:
        deltas, ended = cursor.take()
        taken += deltas
    assert taken == ["Ten."]


def test_a_model_that_generates_nul_sends_what_can_be_stored() -> None:
    stream = Stream(prompt_tokens=1)
    stream.append_token(0, "a\0b")
    stream.append_text("\ud83d")
    assert stream.text == "a\ufffdb\ufffd"
