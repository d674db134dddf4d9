"""Follows turns from the event loop, and stores each once it has ended, client or no client.

No thread is woken while an answer streams: the loop looks at what has come, all streams at the
same ticks. Each wake-up would take the interpreter from the engine, in the middle of a step.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress

from starlette.types import Receive

from chatbot.api.errors import ApiError
from chatbot.turn import Turn

TICK_SECONDS = 0.04
"""Deltas that come between two ticks are sent together; the first of a stream waits for none."""


class AnswerStreams:
    """Follows the turns at once. Iterate for batches of (which turn, deltas); leaving cancels all.
    ``keeper`` stores them, the loop's own threads unless it is told.

    After the last batch the answers are on the disk; if they could not be, iterating raises why.
    """

    def __init__(self, turns: Sequence[Turn], keeper: Executor | None = None) -> None:
        self._turns, self._keeper = turns, keeper
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._cursors = [turn.cursor() for turn in turns]
        self._kept: dict[Turn, asyncio.Future[None]] = {}
        """Turns that have ended -> when they are stored."""
        for turn in turns:
            turn.listen(self._heard)

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, Sequence[str]]]]:
        try:
            ended = started = False
            while not ended:
                await self._news.wait()
                self._news.clear()
                batch, ended = self._take()
                if batch:
                    started = True
                    yield batch
                if started and not ended:
                    self._loop.call_later(self._next_tick(), self._news.set)
        finally:
            self.cancel()
        self._store_ended()  # a cursor may see an end before the callback that announces it
        await self._stored()

    def cancel(self) -> None:
        """Stop all turns; what has come is kept."""
        for turn in self._turns:
            turn.cancel()

    async def wait(self, receive: Receive) -> None:
        """Wait for the end, as long as the client is there."""
        with self.cancel_on_disconnect(receive):
            while len(self._kept) < len(self._turns):
                await self._news.wait()
                self._news.clear()
            await self._stored()

    @contextmanager
    def cancel_on_disconnect(self, receive: Receive) -> Iterator[None]:
        """While this lasts, a client that goes away cancels the turns; so does its end. The body
        of the client's request has been read."""
        listener = asyncio.create_task(self._cancel_when_gone(receive))
        try:
            yield
        finally:
            listener.cancel()
            self.cancel()

    async def _cancel_when_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cancel()

    def _take(self) -> tuple[list[tuple[int, Sequence[str]]], bool]:
        """Return what has come since the last call, by turn, and whether all turns have ended."""
        taken = [cursor.take() for cursor in self._cursors]
        batch: list[tuple[int, Sequence[str]]] = [
            (index, deltas) for index, (deltas, _) in enumerate(taken) if deltas
        ]
        return batch, all(ended for _, ended in taken)

    def _next_tick(self) -> float:
        """Seconds until then; the same moment for all flows of this loop."""
        return TICK_SECONDS - self._loop.time() % TICK_SECONDS

    async def _stored(self) -> None:
        """Every answer is on the disk, or this raises why it is not. Who stops waiting for that
        does not stop it."""
        await asyncio.shield(asyncio.gather(*self._kept.values()))

    def _heard(self) -> None:
        """On the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: the service stores what is on its way
            self._loop.call_soon_threadsafe(self._hear)

    def _hear(self) -> None:
        self._store_ended()
        self._news.set()

    def _store_ended(self) -> None:
        """Start to store each turn that has ended, once."""
        for turn in self._turns:
            if turn.ended and turn not in self._kept:
                self._kept[turn] = self._loop.run_in_executor(self._keeper, turn.close)


def raise_if_interrupted(turns: Sequence[Turn]) -> None:
    """Raise ApiError (503) for an answer that broke off, although its beginning is stored."""
    for turn in turns:
        if turn.speaker.finish in ("error", "cancelled"):
            why = turn.error or "the server is stopping"
            raise ApiError(503, f"The answer broke off: {why}", "server_error", code="broken_off")
