"""Turns of talk heard from the event loop: each runs on a thread of its own, whoever listens.

Because the thread sees its turn to the end, the answer is stored even when the listener is gone.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from starlette.requests import Request

from chatbot.turn import Turn


class Flow:
    """Starts the turns at once. Iterate for batches of (which turn, delta); leaving cancels all.

    After the last batch the answers are on the disk; if they could not be, iterating raises why.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._deltas: deque[tuple[int, str]] = deque()
        self._over: deque[int] = deque()
        self._failure: Exception | None = None
        for index, turn in enumerate(turns):
            threading.Thread(target=self._run, args=(index, turn), name="turn", daemon=True).start()

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, str]]]:
        try:
            while len(self._over) < len(self._turns) or self._deltas:
                await self._news.wait()
                self._news.clear()
                if batch := [self._deltas.popleft() for _ in range(len(self._deltas))]:
                    yield batch
        finally:
            self.cancel()
        if self._failure is not None:
            raise self._failure

    def cancel(self) -> None:
        """Stop all turns; what was handed out is kept."""
        for turn in self._turns:
            turn.cancel()

    async def end(self, request: Request) -> None:
        """Wait for the end; a client that goes away meanwhile cancels the turns."""
        listener = asyncio.create_task(self._cancel_when_gone(request))
        try:
            async for _ in self:
                pass
        finally:
            listener.cancel()

    async def _cancel_when_gone(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.cancel()

    def _run(self, index: int, turn: Turn) -> None:
        try:
            for delta in turn:
                self._deltas.append((index, delta))
                self._tell()
        except Exception as error:  # it belongs to whoever listens
            self._failure = error
        finally:
            self._over.append(index)
            self._tell()

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._news.set)
