"""Runs in a worker's process: a local engine, the server's commands, and updates of the streams."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot.engine.progress import Progress
from chatbot.engine.protocol import EngineError, Request
from chatbot.engine.workers.messages import (
    CallResult,
    StreamUpdate,
    UpdateCollector,
    WorkerConfig,
    WorkerInfo,
)
from feedback.errors import TalkbackError

if TYPE_CHECKING:
    from chatbot.engine.local.local_engine import LocalEngine

TICK_SECONDS = 0.02
"""What comes between two ticks is sent together; first text and ends wait for no tick."""

OPENMP_ENVIRONMENT = {"GOMP_SPINCOUNT": "300000"}
"""How long OpenMP threads spin before they sleep. Threads that compute one stream together and
sleep after every matrix product are no faster than one thread. The number is OpenMP's own default
where no wait policy is set; the server sets one."""


def run_worker(pipe: Connection, progress: Progress) -> None:
    """Run a worker until it is told to close or the server has ended; count what its engine does
    in ``progress``, which the server watches."""
    # A signal to the whole group is the server's business: it lets streams end first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s engine: %(message)s")
    for name, value in OPENMP_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from transformers.utils.logging import disable_progress_bar

    from chatbot.engine.local import local_engine  # noqa: F401  torch, while the server imports other things

    disable_progress_bar()
    try:
        config: WorkerConfig = pipe.recv()
    except EOFError:
        return
    try:
        # On a thread that ends: OpenMP keeps a team of threads for each thread that has computed,
        # and where teams have more threads than there are cores, all sleep after every product.
        with ThreadPoolExecutor(1) as thread:
            engine = thread.submit(_build_engine, config, progress).result()
    except TalkbackError as error:
        pipe.send(error)
        return
    WorkerLoop(pipe, engine).run()


def _build_engine(config: WorkerConfig, progress: Progress) -> "LocalEngine":
    """Load the base and start its engine. Raises BaseError, EngineError if the weights changed."""
    from chatbot.engine.local.local_engine import LocalEngine
    from chatbot.model.base import load_base

    with progress.loading():
        base = load_base(config.base, config.revision)
    if base.fingerprint != config.fingerprint:
        raise EngineError(f"The weights of {config.base} have changed. Start the server again.")
    return LocalEngine(base, config.settings, config.known_threads, progress)


class WorkerLoop:
    """Receives the server's commands for an engine, and sends updates of its streams."""

    def __init__(self, pipe: Connection, engine: "LocalEngine") -> None:
        self._pipe, self._engine = pipe, engine
        self._send_lock = threading.Lock()
        self._collectors: dict[int, UpdateCollector] = {}
        self._update_lock = threading.Lock()
        self._update_event = threading.Event()

    def run(self) -> None:
        """Handle commands until ``None`` comes or the server has ended; then close the engine."""
        self._send(self._info())
        threading.Thread(target=self._update_loop, daemon=True).start()
        try:
            while (message := self._pipe.recv()) is not None:
                self._dispatch(*message)
        except EOFError:
            pass  # the server has ended, and nobody reads the updates
        self._engine.close()
        self._send_updates()

    def _info(self) -> WorkerInfo:
        engine = self._engine
        engine.wait_until_ready()
        stats = engine.stats()
        return WorkerInfo(
            slots=engine.settings.slots,
            max_length=engine.max_length,
            threads=engine.threads,
            device=stats["device"],
            num_parameters=engine.parameters,
            weight_bytes=stats["memory"]["weights"],
            scales_with_cores=engine.uses_spare_cores,
        )

    def _dispatch(self, kind: str, call_id: int, *args: object) -> None:
        match kind, *args:
            case "submit", Request() as request:
                self._submit(call_id, request)
            case ["cancel"]:
                if (collector := self._collectors.get(call_id)) is not None:
                    collector.stream.cancel()
            case "load", str(adapter), Path() as folder:
                self._reply_from_thread(call_id, lambda: self._engine.load(adapter, folder))
            case "unload", str(adapter):
                self._engine.unload(adapter)
            case "set_cores", int(cores):
                self._engine.set_available_cores(cores)
            case ["stats"]:
                self._reply(call_id, self._engine.stats)

    def _submit(self, stream_id: int, request: Request) -> None:
        try:
            stream = self._engine.submit(request)
        except EngineError as error:  # seldom: the server has checked the request
            self._send([(stream_id, StreamUpdate([], [], ("error", str(error))))])
            return
        self._collectors[stream_id] = UpdateCollector(stream)
        stream.on_update(self._update_event.set)
        self._update_event.set()  # wakes the update loop, which ticks while there are streams

    def _reply_from_thread(self, call_id: int, work: Callable[[], object]) -> None:
        """Run ``work`` on a thread of its own and reply then; commands are handled meanwhile."""
        threading.Thread(target=self._reply, args=(call_id, work), daemon=True).start()

    def _reply(self, call_id: int, work: Callable[[], object]) -> None:
        try:
            result = CallResult(call_id, work())
        except Exception as error:  # raised again in the server, by the future of the call
            result = CallResult(call_id, error=error)
        self._send(result)

    def _update_loop(self) -> None:
        while True:
            self._update_event.wait(TICK_SECONDS if self._collectors else None)
            self._update_event.clear()
            self._send_updates()

    def _send_updates(self) -> None:
        """Send what all streams have gained, in one message."""
        with self._update_lock:
            batch = []
            for stream_id, collector in list(self._collectors.items()):
                if (update := collector.collect()) is not None:
                    batch.append((stream_id, update))
                    if update.end is not None:
                        del self._collectors[stream_id]
            if batch:
                self._send(batch)

    def _send(self, message: object) -> None:
        try:
            with self._send_lock:
                self._pipe.send(message)
        except OSError:
            pass  # the server has ended, which `run` notices
