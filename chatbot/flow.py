"""A turn of talk heard from the event loop: it runs on a thread of its own, whoever listens.

Because the thread sees the turn to its end, the answer is stored even when the listener is gone.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.requests import Request

from chatbot.turn import Turn


class Flow:
    """Starts the turn at once. Iterate for batches of deltas; leaving early cancels the turn.

    After the last batch the answer is on the disk; if it could not be, iterating raises why.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._deltas: deque[str] = deque()
        self._over = False
        self._failure: Exception | None = None
        threading.Thread(target=self._run, name="turn", daemon=True).start()

    async def __aiter__(self) -> AsyncIterator[list[str]]:
        try:
            while not self._over or self._deltas:
                await self._news.wait()
                self._news.clear()
                if batch := [self._deltas.popleft() for _ in range(len(self._deltas))]:
                    yield batch
        finally:
            self._turn.cancel()
        if self._failure is not None:
            raise self._failure

    async def end(self, request: Request) -> None:
        """Wait for the end; a client that goes away meanwhile cancels the turn."""
        listener = asyncio.create_task(self._cancel_when_gone(request))
        try:
            async for _ in self:
                pass
        finally:
            listener.cancel()

    async def _cancel_when_gone(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._turn.cancel()

    def _run(self) -> None:
        try:
            for delta in self._turn:
                self._deltas.append(delta)
                self._tell()
        except Exception as error:  # it belongs to whoever listens
            self._failure = error
        finally:
            self._over = True
            self._tell()

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._news.set)
