"""Spreads requests over workers, and restarts those whose process has ended."""

import atexit
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatbot.engine.machine.hardware import available_bytes, available_cores
from chatbot.engine.protocol import (
    BASE,
    TOKEN_COUNTERS,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    Request,
    UnknownAdapterError,
    UnreachableError,
)
from chatbot.engine.retry_after import RetryAfter
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.engine.validation import check_prompt, check_sampling
from chatbot.engine.workers.capacity import worker_count
from chatbot.engine.workers.messages import WorkerConfig
from chatbot.engine.workers.router import PrefixRouter
from chatbot.engine.workers.worker_handle import WorkerHandle
from chatbot.model.adapter import verify_adapter
from chatbot.model.base import Base
from feedback.errors import TalkbackError

log = logging.getLogger("talkback")

CLOSE_SECONDS = 10
"""How long the workers, all together, may take to close before they are killed."""
STATS_SECONDS = 5
"""How long `stats` waits for a worker; after that its numbers are those of the last time."""
COUNTERS = (*TOKEN_COUNTERS, "requests")
SUMMED = (*COUNTERS, "slots", "running", "waiting")
RESTART_DELAYS = (1, 5, 30)
"""Seconds to wait after a worker could not start, by the number of failures; then the last one."""
FIRST_TRIES = 3
"""How often a start begins anew with a worker that stands still while it loads."""
RESTARTING_MESSAGE = "The engine is being started again. Try again in a moment."
STALLED_MESSAGE = "The engine stands still; soon it is started again. Try again in a moment."


class WorkersEngine:
    """Serves one base through several workers; see `Engine` for what the methods promise.

    Making it starts ``first_worker``; the others start in the background while that one answers.
    Raises BaseError, EngineError if the first worker cannot start.
    """

    submit_blocks = False

    def __init__(
        self, base: Base, settings: EngineSettings, config: WorkerConfig, first_worker: WorkerHandle
    ) -> None:
        self.base, self.settings = base, settings
        self._config = config
        # Shared between threads and touched under the lock only.
        self._lock = threading.Condition()
        self._workers: list[WorkerHandle] = []
        self._starting: WorkerHandle | None = None
        self._adapters: dict[str, Path] = {}
        self._router = PrefixRouter()
        self._retry_after = RetryAfter()
        self._past_counts: Counter[str] = Counter()
        """The counters of workers that have ended, as of the last stats they sent."""
        self._closed = False
        self._load_lock = threading.Lock()
        info = self._start_first(first_worker).info
        self.max_length = info.max_length
        self._config = replace(config, known_threads=info.threads)
        self.target_workers: int = settings.workers or worker_count(
            info, available_cores(), available_bytes()
        )
        """How many workers the supervisor keeps running."""
        self._supervisor = threading.Thread(target=self._supervise, name="workers", daemon=True)
        self._supervisor.start()
        atexit.register(self.close)

    def load(self, adapter_id: str, folder: Path) -> None:
        """Verify an adapter and load it in every worker, or in none. Raises AdapterError."""
        with self._load_lock:
            if adapter_id in self._adapters:
                return
            verify_adapter(folder, self.base, adapter_id)
            workers = self._current_workers()
            try:
                _wait_all([worker.call("load", adapter_id, folder) for worker in workers])
            except TalkbackError:
                for worker in workers:
                    worker.unload(adapter_id)
                raise
            with self._lock:
                self._adapters[adapter_id] = folder

    def unload(self, adapter_id: str) -> None:
        """Refuse new requests for an adapter; workers free it when its last stream has ended."""
        with self._load_lock, self._lock:
            if self._adapters.pop(adapter_id, None) is not None:
                for worker in self._workers:
                    worker.unload(adapter_id)

    def adapters(self) -> list[str]:
        """Return the ids that requests may name, `BASE` first."""
        with self._lock:
            return [BASE, *self._adapters]

    @property
    def unavailable_reason(self) -> str | None:
        """Return why no request can be answered while no worker runs and gets on; else None."""
        workers = self._current_workers()
        if any(not worker.stands_still for worker in workers):
            return None
        return STALLED_MESSAGE if workers else RESTARTING_MESSAGE

    def submit(self, request: Request) -> Stream:
        """Send a request to a worker and return its stream.

        Raises EngineBusyError, UnknownAdapterError, PromptTooLongError, UnreachableError,
        EngineClosedError.
        """
        check_sampling(request.sampling)
        check_prompt(request.prompt_ids, self.max_length)
        with self._lock:
            if self._closed:
                raise EngineClosedError()
            if request.adapter != BASE and request.adapter not in self._adapters:
                raise UnknownAdapterError(request.adapter, [BASE, *self._adapters])
            workers = [worker for worker in self._workers if not worker.stands_still]
            if not workers:
                raise UnreachableError(STALLED_MESSAGE if self._workers else RESTARTING_MESSAGE)
            waiting = sum(each.num_streams - each.info.slots for each in workers)
            if waiting >= self.settings.queue:
                raise EngineBusyError(waiting, self._retry_after.estimate_seconds(waiting))
            chosen = self._router.choose(request, workers)
            self._share_cores(chosen)
            return chosen.submit(request)

    def stats(self) -> dict[str, Any]:
        """Return the workers' stats summed, how many run, and the memory of their processes."""
        calls = [(worker, worker.call("stats")) for worker in self._current_workers()]
        for worker, future in calls:
            worker.last_stats = _result_in_time(future) or worker.last_stats
        return {
            **_merge_stats([worker.last_stats for worker, _ in calls], self._past_counts),
            "workers": len(calls),
            "resident": sum(worker.resident_bytes for worker, _ in calls),
            "max_length": self.max_length,
        }

    def close(self) -> None:
        """End every stream as cancelled, and every worker's process."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            workers, starting = list(self._workers), self._starting
        if starting is not None:
            starting.kill()
        for worker in workers:
            worker.begin_close()
        due = time.monotonic() + CLOSE_SECONDS
        for worker in workers:
            worker.wait_until_closed(due - time.monotonic())
        self._supervisor.join()
        atexit.unregister(self.close)

    def _on_stream_end(self) -> None:
        self._retry_after.record_end()
        with self._lock:
            self._share_cores()

    def _share_cores(self, *starting: WorkerHandle) -> None:
        """Divide the cores among the workers with streams and those that are about to get one."""
        busy = {*starting, *(worker for worker in self._workers if worker.num_streams)}
        for worker in busy:
            worker.set_cores(available_cores() // len(busy))

    def _current_workers(self) -> list[WorkerHandle]:
        with self._lock:
            return list(self._workers)

    def _on_worker_exit(self, worker: WorkerHandle) -> None:
        """Drop a worker that has ended; called on its receiving thread."""
        with self._lock:
            if self._closed or worker not in self._workers:
                return  # it was told to close, or had not been added yet
            log.error("%s", worker.end_reason)
            self._workers.remove(worker)
            self._past_counts.update({name: worker.last_stats.get(name, 0) for name in COUNTERS})
            self._lock.notify_all()

    def _start_first(self, worker: WorkerHandle) -> WorkerHandle:
        """Start the first worker, or another in its stead where it stood still while it loaded."""
        for more_tries in reversed(range(FIRST_TRIES)):
            try:
                self._start_worker(worker)
                break
            except TalkbackError as error:
                worker.kill()
                if not worker.stalled or not more_tries:
                    raise
                log.error("The first worker is started anew: %s", error)
                worker = WorkerHandle()
        return worker

    # -- The supervisor's thread

    def _supervise(self) -> None:
        """Start workers whenever fewer run than there should, until the engine is closed."""
        failures = 0
        while (worker := self._next_worker()) is not None:
            try:
                self._start_worker(worker)
                failures = 0
            except TalkbackError as error:
                worker.kill()
                if not self._closed:
                    log.error("A worker cannot begin: %s", error)
                self._pause(RESTART_DELAYS[min(failures, len(RESTART_DELAYS) - 1)])
                failures += 1

    def _next_worker(self) -> WorkerHandle | None:
        """Wait until a worker is missing and return a new one; None once the engine is closed."""
        with self._lock:
            while not self._closed and len(self._workers) >= self.target_workers:
                self._lock.wait()
            self._starting = None if self._closed else WorkerHandle()
            return self._starting

    def _start_worker(self, worker: WorkerHandle) -> None:
        """Start a worker, load all adapters in it, then add it to those that get requests."""
        worker.start(self._config, self._on_stream_end, self._on_worker_exit)
        with self._load_lock:
            _wait_all(
                [worker.call("load", name, folder) for name, folder in self._adapters.items()]
            )
            with self._lock:
                if self._closed:
                    raise EngineClosedError()
                if worker.end_reason is not None:
                    raise EngineError(worker.end_reason)
                self._starting = None
                self._workers.append(worker)

    def _pause(self, seconds: float) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._closed, seconds)


def _wait_all(futures: "list[Future[Any]]") -> None:
    """Wait for all results; raise the first error.

    A worker that has ended meanwhile is an error only if no other is left: its successor loads
    what it lacks.
    """
    errors = [error for future in futures if (error := future.exception()) is not None]
    ended = [error for error in errors if isinstance(error, UnreachableError)]
    if refusals := [error for error in errors if error not in ended]:
        raise refusals[0]
    if ended and len(ended) == len(futures):
        raise ended[0]


def _result_in_time(future: "Future[Any]") -> dict[str, Any] | None:
    """Return a worker's stats; None if it has ended or one of its steps takes too long."""
    try:
        stats: dict[str, Any] = future.result(STATS_SECONDS)
    except (TimeoutError, UnreachableError):
        return None
    return stats


def _merge_stats(stats: Sequence[dict[str, Any]], past_counts: Mapping[str, int]) -> dict[str, Any]:
    """Sum the counts of all workers; a way of serving counts if all workers serve that way."""
    merged: dict[str, Any] = {}
    for name in SUMMED:
        merged[name] = sum(worker.get(name, 0) for worker in stats) + past_counts.get(name, 0)
    for name in ("adapters", "memory"):
        counts = Counter[str]()
        for worker in stats:
            counts.update(worker.get(name, {}))
        merged[name] = dict(counts)
    for name in ("fast", "int8"):
        merged[name] = bool(stats) and all(worker.get(name) for worker in stats)
    alike = next((worker for worker in stats if worker), {"device": "cpu"})
    return {**merged, **{name: alike.get(name) for name in ("device", "runner", "notes")}}
