"""A worker as the server sees it."""

import itertools
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from chatbot.engine.protocol import EngineError, Request, UnreachableError
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.engine.workers import worker_process
from chatbot.engine.workers.messages import Answer, News, Order, Ready, hear
from feedback.errors import TalkbackError

log = logging.getLogger("talkback")

CLOSE_SECONDS = 10
"""How long its last step may take."""


class Worker:
    """A process with an engine in it; it begins to import what it needs when this is made."""

    ready: Ready
    stats: dict[str, Any]
    """What it told when it was last asked."""
    over: str | None
    """Why it can be asked no more."""

    def __init__(self) -> None:
        processes = multiprocessing.get_context("spawn")
        self._pipe, theirs = processes.Pipe()
        self.process = processes.Process(
            target=worker_process.work, args=(theirs,), name="talkback-engine", daemon=True
        )
        self.process.start()
        theirs.close()  # or its end would never be seen here
        # It takes no signals, and Python, also in a child of its own, waits for its children.
        self._at_exit = Finalize(None, self.kill, exitpriority=1)
        self._numbers = itertools.count()
        self._sending = threading.Lock()
        self._listener: threading.Thread | None = None
        # Shared between threads and touched under the lock only.
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._answers: dict[int, Future[Any]] = {}
        self.stats, self.over = {}, None
        self._cores = 0

    @property
    def resident(self) -> int:
        """Bytes of memory that its process has; 0 when it is gone."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def live(self) -> int:
        """How many of its streams have not ended."""
        return len(self._streams)

    def begin(
        self, order: Order, heard: Callable[[], None], lost: Callable[["Worker"], None]
    ) -> None:
        """Blocks until it can be asked; ``heard`` is called when a stream has ended, ``lost`` when
        the process has. Raises BaseError and EngineError.
        """
        try:
            self._pipe.send(order)
            told = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineError(self._death("It was starting")) from error
        if isinstance(told, TalkbackError):
            self.process.join()
            raise told
        self.ready = told
        self._heard, self._lost = heard, lost
        self._listener = threading.Thread(target=self._listen, name="news", daemon=True)
        self._listener.start()

    def submit(self, request: Request) -> Stream:
        """Have it answer; UnreachableError when its process has ended."""
        number = next(self._numbers)
        stream = Stream(len(request.prompt_ids), lambda: self._send("cancel", number))
        with self._lock:
            if self.over is not None:
                raise UnreachableError(self.over)
            self._streams[number] = stream
        self._send("submit", number, request)
        return stream

    def call(self, kind: str, *told: object) -> "Future[Any]":
        """An order that is answered; UnreachableError in the future when its process has ended."""
        number, answer = next(self._numbers), Future[Any]()
        with self._lock:
            if self.over is not None:
                answer.set_exception(UnreachableError(self.over))
                return answer
            self._answers[number] = answer
        self._send(kind, number, *told)
        return answer

    def share(self, cores: int) -> None:
        """Tell it how many cores are there for it."""
        if cores != self._cores:
            self._cores = cores
            self._send("share", next(self._numbers), cores)

    def unload(self, adapter: str) -> None:
        """Have it forget an adapter once its last stream has ended."""
        self._send("unload", next(self._numbers), adapter)

    def close(self) -> None:
        """Have it end its streams as cancelled, and wait until its process is gone."""
        self._put(None)
        self._end_seen(CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """At once."""
        self.process.kill()
        self._end_seen()
        self._at_exit.cancel()

    def _end_seen(self, seconds: float | None = None) -> None:
        """Wait for the end of the process: one thread only may do that, or its code is lost."""
        waiter = self.process if self._listener is None else self._listener
        waiter.join(seconds)

    def _send(self, kind: str, number: int, *told: object) -> None:
        self._put((kind, number, *told))

    def _put(self, message: object) -> None:
        try:
            with self._sending:
                self._pipe.send(message)
        except OSError:
            pass  # its process is gone, as the listener finds out

    def _listen(self) -> None:
        try:
            while True:
                self._hear(self._pipe.recv())
        except (EOFError, OSError):
            pass  # its process is gone
        except Exception:
            log.exception("What a worker told makes no sense; its process ends here.")
            self.process.kill()
        self._end(self._death("It is being started again"))
        self._lost(self)

    def _hear(self, message: Answer | list[tuple[int, News]]) -> None:
        if isinstance(message, Answer):
            self._settle(message)
            return
        for number, news in message:
            with self._lock:
                forget = self._streams.get if news.end is None else self._streams.pop
                stream = forget(number, None)
            if stream is not None:
                hear(stream, news)
            if news.end is not None:
                self._heard()

    def _settle(self, message: Answer) -> None:
        with self._lock:
            answer = self._answers.pop(message.number)
        if message.error is not None:
            answer.set_exception(message.error)
        else:
            answer.set_result(message.result)

    def _end(self, why: str) -> None:
        """Nobody waits for a process that is gone."""
        with self._lock:
            self.over = why
            streams, answers = list(self._streams.values()), list(self._answers.values())
            self._streams.clear()
            self._answers.clear()
        self._pipe.close()
        for stream in streams:
            stream.end("error", why)
        for answer in answers:
            answer.set_exception(UnreachableError(why))

    def _death(self, remark: str) -> str:
        self.process.join()
        return f"The engine's process ended with code {self.process.exitcode}. {remark}."


def early(settings: EngineSettings) -> Worker | None:
    """A worker that begins to import beside whoever makes it, where one will be needed."""
    return None if settings.remote or settings.workers == 0 else Worker()
