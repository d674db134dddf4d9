"""What runs in a worker's process: the engine, its orders, and the news of its streams."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

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
"""News that come between two ticks are told together; first words and ends wait for none."""

OPENMP_ENVIRONMENT = {"GOMP_SPINCOUNT": "300000"}
"""For threads that compute one stream together: asleep after every product they are no faster than
one. It is OpenMP's own number where nobody sets a policy, as the server does."""


def run_worker(pipe: Connection) -> None:
    """The life of a worker: until it is told to close, or the server is gone."""
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
        # On a thread that ends: OpenMP keeps a team for each that has computed, and where there are
        # more of them than cores, all sleep after every product.
        with ThreadPoolExecutor(1) as thread:
            engine = thread.submit(_build_engine, config).result()
    except TalkbackError as error:
        pipe.send(error)
        return
    WorkerLoop(pipe, engine).run()


def _build_engine(config: WorkerConfig) -> "LocalEngine":
    from chatbot.engine.local.local_engine import LocalEngine
    from chatbot.model.base import load_base

    base = load_base(config.base, config.revision)
    if base.fingerprint != config.fingerprint:
        raise EngineError(f"The weights of {config.base} have changed. Start the server again.")
    return LocalEngine(base, config.settings, config.known_threads)


class WorkerLoop:
    """Takes orders for an engine, and tells what its streams say."""

    def __init__(self, pipe: Connection, engine: "LocalEngine") -> None:
        self._pipe, self._engine = pipe, engine
        self._send_lock = threading.Lock()
        self._collectors: dict[int, UpdateCollector] = {}
        self._update_lock = threading.Lock()
        self._update_event = threading.Event()

    def run(self) -> None:
        """Until ``None`` is ordered, or there is nobody to give orders."""
        self._send(self._info())
        threading.Thread(target=self._update_loop, daemon=True).start()
        try:
            while (message := self._pipe.recv()) is not None:
                self._dispatch(*message)
        except EOFError:
            pass  # the server is gone, and nobody hears what is said
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
            parameters=engine.parameters,
            weights=stats["memory"]["weights"],
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
            case "share", int(cores):
                self._engine.set_available_cores(cores)
            case ["stats"]:
                self._reply(call_id, self._engine.stats)

    def _submit(self, stream_id: int, request: Request) -> None:
        try:
            stream = self._engine.submit(request)
        except EngineError as error:  # the server knows better what it may ask
            self._send([(stream_id, StreamUpdate([], [], ("error", str(error))))])
            return
        self._collectors[stream_id] = UpdateCollector(stream)
        stream.on_update(self._update_event.set)
        self._update_event.set()  # from now on there are ticks

    def _reply_from_thread(self, call_id: int, work: Callable[[], object]) -> None:
        """Answer when it is done, and take orders meanwhile."""
        threading.Thread(target=self._reply, args=(call_id, work), daemon=True).start()

    def _reply(self, call_id: int, work: Callable[[], object]) -> None:
        try:
            result = CallResult(call_id, work())
        except Exception as error:  # it belongs to who gave the order
            result = CallResult(call_id, error=error)
        self._send(result)

    def _update_loop(self) -> None:
        while True:
            self._update_event.wait(TICK_SECONDS if self._collectors else None)
            self._update_event.clear()
            self._send_updates()

    def _send_updates(self) -> None:
        """All that is new, in one piece."""
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
            pass  # the server is gone, as `serve` finds out
