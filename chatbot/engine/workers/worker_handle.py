"""Starts a worker process and talks to it from the server's side."""

import ctypes
import itertools
import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from chatbot.engine.progress import Progress, ProgressWatch, read_activity
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

LOOK_SECONDS = 0.2
"""How often a worker's progress is looked at."""


class WorkerHandle:
    """Runs a process with an engine in it; the process begins to import torch when this is made."""

    info: WorkerInfo
    _settings: EngineSettings
    last_stats: dict[str, Any]
    """The latest stats that it sent."""
    end_reason: str | None
    """Why the process has ended; None while it runs."""

    def __init__(self) -> None:
        processes = multiprocessing.get_context("spawn")
        self._pipe, worker_pipe = processes.Pipe()
        self._progress = Progress(processes.RawArray(ctypes.c_int64, Progress.CELLS))
        self.process = processes.Process(
            target=worker_process.run_worker,
            args=(worker_pipe, self._progress),
            name="talkback-engine",
            daemon=True,
        )
        self.process.start()
        worker_pipe.close()  # while a copy is open here, the end of the process is not noticed
        # A worker ignores signals, and Python waits for child processes at exit: without this, a
        # server (or a child of it) that exits early would wait for ever.
        self._at_exit = Finalize(None, self.kill, exitpriority=1)
        self._ids = itertools.count()
        self._outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._receiver: threading.Thread | None = None
        # Shared between threads and touched under the lock only.
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._calls: dict[int, Future[Any]] = {}
        self.last_stats, self.end_reason = {}, None
        self._watch = ProgressWatch(self._progress, self.process.pid or 0)
        self.stalled, self._ended = False, threading.Event()
        """Whether the process was ended because it, or a load in it, stood still."""
        self._closing = False
        self._cores = 0

    @property
    def resident_bytes(self) -> int:
        """Return the resident memory of the process in bytes; 0 once it has ended."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def num_streams(self) -> int:
        """Return how many of its streams have not ended."""
        return len(self._streams)

    @property
    def stands_still(self) -> bool:
        """Tell whether it has got no further for so long that it is better sent no requests."""
        return self._watch.still_seconds >= self._settings.unready_seconds

    def start(
        self,
        config: WorkerConfig,
        on_stream_end: Callable[[], None],
        on_exit: Callable[["WorkerHandle"], None],
    ) -> None:
        """Have it load the base, and return once it is ready for requests.

        ``on_stream_end`` is called when a stream has ended, ``on_exit`` when the process has, both
        on this worker's receiving thread. From now on the process is killed once it has stood still
        for ``stall_seconds``. Raises BaseError, EngineError.
        """
        self._settings = config.settings
        threading.Thread(target=self._watch_loop, name="worker-watch", daemon=True).start()
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
        self._receiver = threading.Thread(
            target=self._receive_loop, name="worker-updates", daemon=True
        )
        self._receiver.start()
        threading.Thread(target=self._send_loop, name="worker-requests", daemon=True).start()

    def submit(self, request: Request) -> Stream:
        """Send a request and return its stream. Raises UnreachableError once the process ended."""
        stream_id = next(self._ids)
        stream = Stream(len(request.prompt_ids), lambda: self._send("cancel", stream_id))
        with self._lock:
            if self.end_reason is not None:
                raise UnreachableError(self.end_reason)
            self._streams[stream_id] = stream
        self._send("submit", stream_id, request)
        return stream

    def call(self, kind: str, *args: object) -> "Future[Any]":
        """Send a command that returns a result, and return the future of that result.

        The future raises UnreachableError if the process ends first.
        """
        call_id, future = next(self._ids), Future[Any]()
        with self._lock:
            if self.end_reason is not None:
                future.set_exception(UnreachableError(self.end_reason))
                return future
            self._calls[call_id] = future
        self._send(kind, call_id, *args)
        return future

    def set_cores(self, cores: int) -> None:
        """Grant it a number of cores; sends nothing if it has as many."""
        if cores != self._cores:
            self._cores = cores
            self._send("set_cores", next(self._ids), cores)

    def unload(self, adapter: str) -> None:
        """Have it free an adapter once the adapter's last stream has ended."""
        self._send("unload", next(self._ids), adapter)

    def begin_close(self) -> None:
        """Have it end its streams as cancelled and close; one that is stopped or hangs is killed
        as soon as that is seen."""
        self._closing = True
        self._outbox.put(None)

    def wait_until_closed(self, seconds: float) -> None:
        """Wait until the process has ended; kill it after so many seconds."""
        self._join(max(seconds, 0))
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._ended.set()
        self.process.kill()
        self._join()
        self._at_exit.cancel()

    def _join(self, seconds: float | None = None) -> None:
        """Wait for the end of the process, at most ``seconds``."""
        # Only one thread may wait for a process, or its exit code is lost to the other: once there
        # is a receiver it waits, and others wait for the receiver.
        waiter = self.process if self._receiver is None else self._receiver
        waiter.join(seconds)

    def _send(self, kind: str, message_id: int, *args: object) -> None:
        self._outbox.put((kind, message_id, *args))

    def _send_loop(self) -> None:
        """Send what is in the outbox, up to None, by which a worker closes.

        A pipe that a worker does not empty blocks this thread, and nobody who has a request.
        """
        message: object = ()
        try:
            while message is not None:
                message = self._outbox.get()
                self._pipe.send(message)
        except OSError:
            pass  # the process has ended, which the receiver reports

    def _watch_loop(self) -> None:
        """Kill the process once it has stood still for too long; SIGKILL ends a stopped one too."""
        limit = self._settings.stall_seconds
        while not self._ended.wait(LOOK_SECONDS):
            if max(self._watch.look(), self._watch.loading_still_seconds) > limit:
                self.stalled = True
            elif not (self._closing and self._cannot_close()):
                continue
            self.process.kill()
            return

    def _cannot_close(self) -> bool:
        activity = read_activity(self.process.pid or 0)
        return self.stands_still or bool(activity and activity.stopped)

    def _receive_loop(self) -> None:
        try:
            while True:
                self._receive(self._pipe.recv())
        except (EOFError, OSError):
            pass  # the process has ended
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
        """End every stream and call that waits for the process, which has ended."""
        with self._lock:
            self.end_reason = reason
            streams, calls = list(self._streams.values()), list(self._calls.values())
            self._streams.clear()
            self._calls.clear()
        self._ended.set()
        self._outbox.put(None)  # ends the sending thread
        self._pipe.close()
        for stream in streams:
            stream.end("error", reason)
        for future in calls:
            future.set_exception(UnreachableError(reason))

    def _exit_message(self, outlook: str) -> str:
        self.process.join()
        if self.stalled:
            seconds = max(self._watch.still_seconds, self._watch.loading_still_seconds)
            return f"The engine's process stood still for {seconds:.0f} s and was ended. {outlook}."
        return f"The engine's process ended with code {self.process.exitcode}. {outlook}."


def prestart_worker(settings: EngineSettings) -> WorkerHandle | None:
    """Start a worker that imports torch while the server imports other things.

    Returns None where the settings need no worker.
    """
    return None if settings.remote or settings.workers == 0 else WorkerHandle()
