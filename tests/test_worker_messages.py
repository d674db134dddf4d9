"""Streams told in pieces from one process to another are the same streams."""

import pytest

from chatbot.engine.stream import Stream, TokenLogprob
from chatbot.engine.workers.messages import UpdateCollector, apply_update
from tests.fakes.racing_stream import RacingStream


@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_a_stream_told_in_pieces_is_the_same_stream(every: int) -> None:
    source, copy = Stream(3), Stream(3)
    collector = UpdateCollector(source)
    for number, delta in enumerate(["", "ab", "c", "", "", "d", "e", ""]):
        source.logprobs.append(TokenLogprob(number, -1.0))
        source.append_token(number, delta)
        if number % every == 0 and (update := collector.collect()) is not None:
            apply_update(copy, update)
            assert copy.ids == source.ids, "also those that have made no text yet"
    source.append_text("f")
    assert copy.finish is None
    source.end("stop")
    if (update := collector.collect()) is not None:
        apply_update(copy, update)
    assert (copy.ids, copy.deltas, copy.token_counts) == (
        source.ids,
        source.deltas,
        source.token_counts,
    )
    assert copy.logprobs == source.logprobs and copy.finish == "stop"


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("reads", range(1, 9))
def test_tokens_that_come_while_an_update_is_collected_keep_their_text(
    reads: int, ends: bool
) -> None:
    source, copy = RacingStream(3), Stream(3)
    collector = UpdateCollector(source)

    def add(*deltas: str) -> None:
        for delta in deltas:
            source.logprobs.append(TokenLogprob(len(source.ids), -1.0))
            source.append_token(len(source.ids), delta)

    def go_on() -> None:
        add("b", "c", "")
        if ends:
            source.end("stop")

    def send() -> None:
        if copy.finish is None and (update := collector.collect()) is not None:
            apply_update(copy, update)

    add("", "a")
    source.race(reads, go_on)
    send()
    send()
    if not ends:
        add("d", "")
        source.end("stop")
    send()
    assert (copy.ids, copy.deltas) == (source.ids, source.deltas)
    assert (copy.token_counts, copy.logprobs) == (source.token_counts, source.logprobs)
    assert copy.finish == "stop"


def test_an_answer_that_ends_before_its_first_token_has_no_first_token() -> None:
    source, copy = Stream(3), Stream(3)
    source.end("error", "The engine failed.")
    update = UpdateCollector(source).collect()
    assert update is not None
    apply_update(copy, update)
    assert (copy.first_token_ms, copy.finish, copy.error) == (None, "error", source.error)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_thought_arrives_before_the_text_after_it(every: int) -> None:
    source, copy = Stream(3), Stream(3)
    collector = UpdateCollector(source)
    pieces = [("Hm", ""), (", so", ""), ("", ""), ("", "At"), ("", " ten.")]
    for number, (thought, delta) in enumerate(pieces, 1):
        source.thought_tokens = min(number, 3)
        source.append_token(number, delta, thought)
        if number % every == 0 and (update := collector.collect()) is not None:
            apply_update(copy, update)
            assert copy.thought == source.thought and copy.text == source.text
    source.end("stop")
    update = collector.collect()
    assert update is not None
    apply_update(copy, update)
    assert (copy.thought, copy.text, copy.thought_tokens) == ("Hm, so", "At ten.", 3)
    assert (copy.ids, copy.token_counts) == (source.ids, source.token_counts)
    assert copy.thought_ms is not None
