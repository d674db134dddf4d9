"""Tests streaming from the event loop: which deltas are sent together, when, and what is stored."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chatbot.api import streaming as flows
from chatbot.api.openai.chat_response import ChatChunks
from chatbot.api.streaming import AnswerStreams, StreamedPart
from chatbot.engine.protocol import Request, Sampling
from chatbot.engine.stream import Stream, TokenLogprob
from chatbot.question import Question
from chatbot.service import Service
from chatbot.turn import Turn
from tests.fakes.scripted_engine import ScriptedEngine, open_service
from tests.fixtures import async_thread
from tests.fixtures.turns import begin_turn

Batch = list[StreamedPart]


class ByHand(ScriptedEngine):
    """Answers with what the test appends to its newest stream."""

    def submit(self, request: Request) -> Stream:
        self.stream = Stream(len(request.prompt_ids), self._wake)
        return self.stream

    def _wake(self) -> None:
        self.stream.end("cancelled")


@pytest.fixture(scope="module")
def engine() -> ByHand:
    return ByHand()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, engine: ByHand) -> Iterator[Service]:
    service = open_service(tmp_path_factory.mktemp("flow"), ScriptedEngine(pause=0))
    service.engine = service.rollout.engine = engine
    yield service
    service.close()


@pytest.fixture
def turn(service: Service) -> Turn:
    sampling = Sampling(logprobs=0)
    return begin_turn(service, Question("Hello", "ann", sampling=sampling, adapter="base"))


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in an event loop of its own, for at most ten seconds."""
    async_thread.run_in_thread(asyncio.wait_for(work, 10))


async def wait_until_stored(service: Service, turn: Turn) -> None:
    """Wait until an answer to the turn's question is stored."""
    while not service.store.children(turn.user_message_id):
        await asyncio.sleep(0.01)


def stored_answer(service: Service, turn: Turn) -> tuple[str, str]:
    """Return what is stored of the answer, and its finish reason."""
    speaker = service.store.speaker(turn.message_id)
    assert speaker is not None
    return service.store.message(turn.message_id).content, speaker.finish


def test_first_and_last_words_wait_for_no_tick(
    service: Service, engine: ByHand, turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "TICK_SECONDS", 1e6)
    stream = engine.stream

    async def hear() -> None:
        batches: AsyncIterator[Batch] = aiter(AnswerStreams([turn]))
        stream.append_token(1, "We")
        assert await anext(batches) == [StreamedPart(0, [], ["We"])]
        stream.append_token(2, " open")
        stream.append_token(3, " at ten.")
        stream.end("stop")
        assert [batch async for batch in batches] == [[StreamedPart(0, [], [" open", " at ten."])]]
        assert stored_answer(service, turn) == ("We open at ten.", "stop"), (
            "stored before the end is told"
        )

    run(hear())


def test_what_comes_between_two_ticks_is_one_piece(
    engine: ByHand, turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "TICK_SECONDS", 0.2)
    stream = engine.stream

    async def hear() -> None:
        batches: AsyncIterator[Batch] = aiter(AnswerStreams([turn]))
        stream.append_token(1, "a")
        await anext(batches)
        next_batch = asyncio.ensure_future(anext(batches))
        for token in "bcd":
            stream.append_token(2, token)
            await asyncio.sleep(0)
        assert await next_batch == [StreamedPart(0, [], ["b", "c", "d"])]
        turn.cancel()

    run(hear())


def test_every_token_is_told_once_however_many_come_together(engine: ByHand, turn: Turn) -> None:
    stream = engine.stream
    for token, delta in enumerate(["", "ab", "c", "", "", "d", "e"]):
        stream.logprobs.append(TokenLogprob(token, -1.0))
        stream.append_token(token, delta)
    chunks = ChatChunks([turn], False, lambda chances: {"content": [c.token for c in chances]})
    sent_chunks = [
        chunk
        for deltas in (["ab"], ["c", "d"], ["e"])
        for chunk in chunks.more(StreamedPart(0, [], deltas))
    ]
    choices = [chunk["choices"][0] for chunk in sent_chunks]
    assert [choice["delta"]["content"] for choice in choices] == ["ab", "cd", "e"]
    assert [choice["logprobs"]["content"] for choice in choices] == [[0, 1], [2, 3, 4, 5], [6]]
    turn.close()


def test_a_turn_that_nobody_hears_is_kept(service: Service, engine: ByHand, turn: Turn) -> None:
    stream = engine.stream

    async def ignore() -> None:
        AnswerStreams([turn])
        stream.append_token(1, "Ten.")
        stream.end("stop")
        await asyncio.sleep(0)
        await wait_until_stored(service, turn)

    run(ignore())
    assert stored_answer(service, turn) == ("Ten.", "stop")


def test_who_leaves_in_the_middle_ends_the_turn_and_what_came_is_kept(
    service: Service, engine: ByHand, turn: Turn
) -> None:
    stream = engine.stream

    async def leave() -> None:
        batches = AnswerStreams([turn]).__aiter__()
        stream.append_token(1, "We")
        await anext(batches)
        stream.append_token(2, " are")
        await batches.aclose()  # type: ignore[attr-defined]
        assert stream.finish == "cancelled"
        await wait_until_stored(service, turn)

    run(leave())
    assert stored_answer(service, turn) == ("We are", "cancelled")


def test_who_leaves_while_the_answer_is_being_kept_does_not_stop_that(
    service: Service, engine: ByHand, turn: Turn
) -> None:
    async def leave() -> None:
        release = threading.Event()
        asyncio.get_running_loop().set_default_executor(busy := ThreadPoolExecutor(1))
        busy.submit(release.wait, 10)
        engine.stream.append_token(1, "We")
        engine.stream.end("stop")
        first_batch = asyncio.ensure_future(anext(batches := aiter(AnswerStreams([turn]))))
        assert await first_batch == [StreamedPart(0, [], ["We"])]
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        release.set()
        await wait_until_stored(service, turn)

    run(leave())
    assert stored_answer(service, turn) == ("We", "stop")


def test_a_stop_of_the_service_keeps_what_has_come(
    service: Service, engine: ByHand, turn: Turn
) -> None:
    """The service closes the turns on the loop's own thread, which runs nothing else meanwhile."""

    async def stop() -> None:
        AnswerStreams([turn])
        engine.stream.append_token(1, "We")
        turn.close()

    run(stop())
    assert stored_answer(service, turn) == ("We", "cancelled")


def test_an_answer_that_cannot_be_kept_is_an_error_for_who_hears_it(
    engine: ByHand, turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError("no space")

    monkeypatch.setattr(turn, "close", full)
    engine.stream.append_token(1, "We")
    engine.stream.end("stop")

    async def hear() -> None:
        with pytest.raises(OSError, match="no space"):
            async for _ in AnswerStreams([turn]):
                pass

    run(hear())


def test_what_was_heard_to_the_end_leaves_no_cycle_for_the_garbage_collector() -> None:
    class Ear:
        def __init__(self, stream: Stream) -> None:
            self.stream, self.heard = stream, 0
            stream.on_update(self.hear)

        def hear(self) -> None:
            self.heard += 1

    ear = Ear(Stream(0))
    ear.stream.append_token(1, "Yes")
    ear.stream.end("stop")
    assert ear.heard == 2
    gone = weakref.ref(ear)
    gc.disable()
    try:
        del ear
        assert gone() is None
    finally:
        gc.enable()
