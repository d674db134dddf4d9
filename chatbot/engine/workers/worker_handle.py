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
from chatbot.engine.workers.messages import (
    CallResult,
    StreamUpdate,
    WorkerConfig,
    WorkerInfo,
    apply_update,
)
from feedback.errors import TalkbackError

log = logging.getLogger("talkback")

CLOSE_SECONDS = 10
"""How long its last step may take."""


class WorkerHandle:
    """A process with an engine in it; it begins to import what it needs when this is made."""

    info: WorkerInfo
    last_stats: dict[str, Any]
    """What it told when it was last asked."""
    end_reason: str | None
    """Why it can be asked no more."""

    def __init__(self) -> None:
        processes = multiprocessing.get_context("spawn")
        self._pipe, worker_pipe = processes.Pipe()
        self.process = processes.Process(
            target=worker_process.run_worker,
            args=(worker_pipe,),
            name="talkback-engine",
            daemon=True,
        )
        self.process.start()
        worker_pipe.close()  # or its end would never be seen here
        # It takes no signals, and Python, also in a child of its own, waits for its children.
        self._at_exit = Finalize(None, self.kill, exitpriority=1)
        self._ids = itertools.count()
        self._send_lock = threading.Lock()
        self._receiver: threading.Thread | None = None
        # Shared between threads and touched under the lock only.
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._calls: dict[int, Future[Any]] = {}
        self.last_stats, self.end_reason = {}, None
        self._cores = 0

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that its process has; 0 when it is gone."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def num_streams(self) -> int:
        """How many of its streams have not ended."""
        return len(self._streams)

    def start(
        self,
        config: WorkerConfig,
        on_stream_end: Callable[[], None],
        on_exit: Callable[["WorkerHandle"], None],
    ) -> None:
        """Blocks until it can be asked; ``heard`` is called when a stream has ended, ``lost`` when
        the process has. Raises BaseError and EngineError.
        """
        try:
            self._pipe.send(config)
            reply = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineError(self._exit_message("It was starting")) from error
        if isinstance(reply, TalkbackError):
            self.process.join()
            raise reply
        self.info = reply
        self._on_stream_end, self._on_exit = on_stream_end, on_exit
        self._receiver = threading.Thread(target=self._receive_loop, name="news", daemon=True)
        self._receiver.start()

    def submit(self, request: Request) -> Stream:
        """Have it answer; UnreachableError when its process has ended."""
        stream_id = next(self._ids)
        stream = Stream(len(request.prompt_ids), lambda: self._send("cancel", stream_id))
        with self._lock:
            if self.end_reason is not None:
                raise UnreachableError(self.end_reason)
            self._streams[stream_id] = stream
        self._send("submit", stream_id, request)
        return stream

    def call(self, kind: str, *args: object) -> "Future[Any]":
        """An order that is answered; UnreachableError in the future when its process has ended."""
        call_id, future = next(self._ids), Future[Any]()
        with self._lock:
            if self.end_reason is not None:
                future.set_exception(UnreachableError(self.end_reason))
                return future
            self._calls[call_id] = future
        self._send(kind, call_id, *args)
        return future

    def set_cores(self, cores: int) -> None:
        """Tell it how many cores are there for it."""
        if cores != self._cores:
            self._cores = cores
            self._send("share", next(self._ids), cores)

    def unload(self, adapter: str) -> None:
        """Have it forget an adapter once its last stream has ended."""
        self._send("unload", next(self._ids), adapter)

    def close(self) -> None:
        """Have it end its streams as cancelled, and wait until its process is gone."""
        self._send_message(None)
        self._join(CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """At once."""
        self.process.kill()
        self._join()
        self._at_exit.cancel()

    def _join(self, seconds: float | None = None) -> None:
        """Wait for the end of the process: one thread only may do that, or its code is lost."""
        waiter = self.process if self._receiver is None else self._receiver
        waiter.join(seconds)

    def _send(self, kind: str, number: int, *args: object) -> None:
        self._send_message((kind, number, *args))

    def _send_message(self, message: object) -> None:
        try:
            with self._send_lock:
                self._pipe.send(message)
        except OSError:
            pass  # its process is gone, as the listener finds out

    def _receive_loop(self) -> None:
        try:
            while True:
                self._receive(self._pipe.recv())
        except (EOFError, OSError):
            pass  # its process is gone
        except Exception:
            log.exception("What a worker told makes no sense; its process ends here.")
            self.process.kill()
        self._fail_pending(self._exit_message("It is being started again"))
        self._on_exit(self)

    def _receive(self, message: CallResult | list[tuple[int, StreamUpdate]]) -> None:
        if isinstance(message, CallResult):
            self._resolve_call(message)
            return
        for stream_id, update in message:
            with self._lock:
                forget = self._streams.get if update.end is None else self._streams.pop
                stream = forget(stream_id, None)
            if stream is not None:
                apply_update(stream, update)
            if update.end is not None:
                self._on_stream_end()

    def _resolve_call(self, result: CallResult) -> None:
        with self._lock:
            future = self._calls.pop(result.call_id)
        if result.error is not None:
            future.set_exception(result.error)
        else:
            future.set_result(result.result)

    def _fail_pending(self, reason: str) -> None:
        """Nobody waits for a process that is gone."""
        with self._lock:
            self.end_reason = reason
            streams, calls = list(self._streams.values()), list(self._calls.values())
            self._streams.clear()
            self._calls.clear()
        self._pipe.close()
        for stream in streams:
            stream.end("error", reason)
        for answer in calls:
            answer.set_exception(UnreachableError(reason))

    def _exit_message(self, outlook: str) -> str:
        self.process.join()
        return f"The engine's process ended with code {self.process.exitcode}. {outlook}."


def prestart_worker(settings: EngineSettings) -> WorkerHandle | None:
    """A worker that begins to import beside whoever makes it, where one will be needed."""
    return None if settings.remote or settings.workers == 0 else WorkerHandle()
