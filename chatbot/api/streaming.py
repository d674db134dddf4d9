"""Follows turns from the event loop, and stores each once it has ended, client or no client.

No thread is woken while an answer streams: the loop polls the streams, all of them at the same
ticks. A wake-up at every token would take the interpreter (GIL) from the engine in the middle of a
step.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from starlette.types import Receive

from chatbot.api.errors import ApiError
from chatbot.turn import Turn

TICK_SECONDS = 0.04
"""Deltas that come between two ticks are sent together; the first of a stream waits for none."""


@dataclass(frozen=True)
class StreamedPart:
    """Holds what an answer has gained: more of its thought, then more of its text."""

    index: int
    """Which of the turns it is."""
    thoughts: Sequence[str]
    deltas: Sequence[str]


class AnswerStreams:
    """Streams the answers of some turns together. Iterate for batches of `StreamedPart`; to stop
    iterating cancels all turns.

    ``executor`` stores the answers, by default the event loop's. After the last batch they are on
    the disk; iterating raises the exception that kept one from being stored.
    """

    def __init__(self, turns: Sequence[Turn], executor: Executor | None = None) -> None:
        self._turns, self._executor = turns, executor
        self._loop = asyncio.get_running_loop()
        self._updated = asyncio.Event()
        self._cursors = [turn.cursor() for turn in turns]
        self._storing: dict[Turn, asyncio.Future[None]] = {}
        """Turn that has ended -> future that is done when its answer is stored."""
        for turn in turns:
            turn.on_update(self._on_update)

    async def __aiter__(self) -> AsyncIterator[list[StreamedPart]]:
        try:
            ended = started = False
            while not ended:
                await self._updated.wait()
                self._updated.clear()
                batch, ended = self._take()
                if batch:
                    started = True
                    yield batch
                if started and not ended:
                    self._loop.call_later(self._seconds_to_tick(), self._updated.set)
        finally:
            self.cancel()
        self._store_ended()  # a cursor may see an end before the callback that announces it
        await self._wait_until_stored()

    def cancel(self) -> None:
        """Cancel all turns; what has come of their answers is stored."""
        for turn in self._turns:
            turn.cancel()

    async def wait(self, receive: Receive) -> None:
        """Wait until all answers are stored; a client that disconnects cancels them."""
        with self.cancel_on_disconnect(receive):
            while len(self._storing) < len(self._turns):
                await self._updated.wait()
                self._updated.clear()
            await self._wait_until_stored()

    @contextmanager
    def cancel_on_disconnect(self, receive: Receive) -> Iterator[None]:
        """Cancel the turns when the client disconnects, and when the context ends.

        The body of the client's request must have been read: the next message is the disconnect.
        """
        listener = asyncio.create_task(self._wait_for_disconnect(receive))
        try:
            yield
        finally:
            listener.cancel()
            self.cancel()

    async def _wait_for_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cancel()

    def _take(self) -> tuple[list[StreamedPart], bool]:
        """Return what has come since the last call, by turn, and whether all turns have ended."""
        batch: list[StreamedPart] = []
        ends: list[bool] = []
        for index, cursor in enumerate(self._cursors):
            deltas, ended = cursor.take()
            part = StreamedPart(index, cursor.take_thoughts(), deltas)
            batch += [part] if part.thoughts or part.deltas else []
            ends.append(ended)
        return batch, all(ends)

    def _seconds_to_tick(self) -> float:
        """Return the seconds until the next tick, which all streams of this loop share, so that one
        wake-up serves them."""
        return TICK_SECONDS - self._loop.time() % TICK_SECONDS

    async def _wait_until_stored(self) -> None:
        """Wait until all ended answers are on the disk; raise the exception that kept one from it.

        Shielded: cancelling the wait does not cancel the storing.
        """
        await asyncio.shield(asyncio.gather(*self._storing.values()))

    def _on_update(self) -> None:
        """Wake the event loop; called on the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: the service stores open turns
            self._loop.call_soon_threadsafe(self._handle_update)

    def _handle_update(self) -> None:
        self._store_ended()
        self._updated.set()

    def _store_ended(self) -> None:
        """Start to store each turn that has ended, once."""
        for turn in self._turns:
            if turn.ended and turn not in self._storing:
                self._storing[turn] = self._loop.run_in_executor(self._executor, turn.close)


def raise_if_interrupted(turns: Sequence[Turn]) -> None:
    """Raise ApiError (503) for an answer that broke off, although its beginning is stored."""
    for turn in turns:
        if turn.speaker.finish in ("error", "cancelled"):
            why = turn.error or "the server is stopping"
            raise ApiError(503, f"The answer broke off: {why}", "server_error", code="broken_off")
