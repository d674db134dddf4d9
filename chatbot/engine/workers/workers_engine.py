"""The engine that speaks through workers, and keeps as many of them alive as there should be."""

import atexit
import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatbot.engine.machine import available_cores, free_bytes
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
from chatbot.engine.workers.capacity import how_many
from chatbot.engine.workers.messages import Order
from chatbot.engine.workers.router import Router
from chatbot.engine.workers.worker_handle import Worker
from chatbot.model import lora
from chatbot.model.base import Base
from feedback.errors import TalkbackError

log = logging.getLogger("talkback")

STATS_SECONDS = 5
"""After so long the numbers are those of the time before."""
COUNTED = (*TOKEN_COUNTERS, "requests")
SUMS = (*COUNTED, "slots", "running", "waiting")
PAUSES = (1, 5, 30)
"""Seconds before a worker is started again that could not start; the last from then on."""
GONE = "The engine is being started again. Try again in a moment."


class WorkersEngine:
    """Workers of one base behind one engine; see `Engine` for what the methods promise.

    ``first`` begins here, the others beside, while it speaks already. Raises BaseError and
    EngineError when it cannot begin.
    """

    submit_blocks = False

    def __init__(self, base: Base, settings: EngineSettings, order: Order, first: Worker) -> None:
        self.base, self.settings = base, settings
        self._order = order
        # Shared between threads and touched under the lock only.
        self._lock = threading.Condition()
        self._workers: list[Worker] = []
        self._coming: Worker | None = first
        self._adapters: dict[str, Path] = {}
        self._router = Router()
        self._retry_after = RetryAfter()
        self._past: Counter[str] = Counter()
        """What workers that are gone had counted when they were last asked."""
        self._closed = False
        self._loading = threading.Lock()
        self._begin(first)
        ready = first.ready
        self.max_length = ready.max_length
        self._order = replace(order, tried=ready.threads)
        self.wanted: int = settings.workers or how_many(ready, available_cores(), free_bytes())
        """How many workers there should be."""
        self._keeper = threading.Thread(target=self._keep, name="workers", daemon=True)
        self._keeper.start()
        atexit.register(self.close)

    def load(self, adapter_id: str, folder: Path) -> None:
        """Verify and load an adapter in every worker; AdapterError when one refuses it."""
        with self._loading:
            if adapter_id in self._adapters:
                return
            adapter = lora.verify(folder, self.base)
            if adapter.id != adapter_id:
                raise lora.AdapterError(f"{folder} holds {adapter.id}, not {adapter_id}.")
            workers = self._alive()
            try:
                _all([worker.call("load", adapter_id, folder) for worker in workers])
            except TalkbackError:
                for worker in workers:
                    worker.unload(adapter_id)
                raise
            with self._lock:
                self._adapters[adapter_id] = folder

    def unload(self, adapter_id: str) -> None:
        """Take no new requests for it; it leaves memory when its last stream has ended."""
        with self._loading, self._lock:
            if self._adapters.pop(adapter_id, None) is not None:
                for worker in self._workers:
                    worker.unload(adapter_id)

    def adapters(self) -> list[str]:
        """What can be asked now, `BASE` first."""
        with self._lock:
            return [BASE, *self._adapters]

    @property
    def unavailable_reason(self) -> str | None:
        """While no worker is alive."""
        return None if self._workers else GONE

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
            if not self._workers:
                raise UnreachableError(GONE)
            waiting = sum(worker.live for worker in self._workers) - self._slots()
            if waiting >= self.settings.queue:
                raise EngineBusyError(waiting, self._retry_after.estimate_seconds(waiting))
            chosen = self._router.choose(request, self._workers)
            self._share_cores(chosen)
            return chosen.submit(request)

    def stats(self) -> dict[str, Any]:
        """The workers' own, together; how many there are, and the memory of their processes."""
        asked = [(worker, worker.call("stats")) for worker in self._alive()]
        for worker, answer in asked:
            worker.stats = _in_time(answer) or worker.stats
        return {
            **_together([worker.stats for worker, _ in asked], self._past),
            "workers": len(asked),
            "resident": sum(worker.resident for worker, _ in asked),
            "max_length": self.max_length,
        }

    def close(self) -> None:
        """End every stream as cancelled and every process."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            workers, coming = list(self._workers), self._coming
        if coming is not None:
            coming.kill()
        for worker in workers:
            worker.close()
        self._keeper.join()
        atexit.unregister(self.close)

    def _ended(self) -> None:
        """A stream has."""
        self._retry_after.record_end()
        with self._lock:
            self._share_cores()

    def _share_cores(self, *more: Worker) -> None:
        """They are there for those who speak, and for ``more`` who are about to."""
        speaking = {*more, *(worker for worker in self._workers if worker.live)}
        for worker in speaking:
            worker.share(available_cores() // len(speaking))

    def _slots(self) -> int:
        return sum(worker.ready.slots for worker in self._workers)

    def _alive(self) -> list[Worker]:
        with self._lock:
            return list(self._workers)

    def _lost(self, worker: Worker) -> None:
        """On the thread that listened to it."""
        with self._lock:
            if self._closed or worker not in self._workers:
                return  # it was told to end, or could not join
            log.error("%s", worker.over)
            self._workers.remove(worker)
            self._past.update({name: worker.stats.get(name, 0) for name in COUNTED})
            self._lock.notify_all()

    # -- The keeper's thread

    def _keep(self) -> None:
        """Begin workers whenever there are fewer than there should be."""
        failures = 0
        while (worker := self._next()) is not None:
            try:
                self._begin(worker)
                failures = 0
            except TalkbackError as error:
                worker.kill()
                if not self._closed:
                    log.error("A worker cannot begin: %s", error)
                self._pause(PAUSES[min(failures, len(PAUSES) - 1)])
                failures += 1

    def _next(self) -> Worker | None:
        """Another one, once one is missing; None once closed."""
        with self._lock:
            while not self._closed and len(self._workers) >= self.wanted:
                self._lock.wait()
            self._coming = None if self._closed else Worker()
            return self._coming

    def _begin(self, worker: Worker) -> None:
        """Let it join once it has all adapters that the others have."""
        worker.begin(self._order, self._ended, self._lost)
        with self._loading:
            _all([worker.call("load", name, folder) for name, folder in self._adapters.items()])
            with self._lock:
                if self._closed:
                    raise EngineClosedError()
                if worker.over is not None:
                    raise EngineError(worker.over)
                self._coming = None
                self._workers.append(worker)

    def _pause(self, seconds: float) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._closed, seconds)


def _all(answers: "list[Future[Any]]") -> None:
    """Wait for all; raises the first error. A worker that is gone meanwhile counts only if it was
    the last: its successor gets what it lacks."""
    errors = [error for answer in answers if (error := answer.exception()) is not None]
    gone = [error for error in errors if isinstance(error, UnreachableError)]
    if refusals := [error for error in errors if error not in gone]:
        raise refusals[0]
    if gone and len(gone) == len(answers):
        raise gone[0]


def _in_time(answer: "Future[Any]") -> dict[str, Any] | None:
    """What a worker tells, unless it is gone or a step takes very long."""
    try:
        told: dict[str, Any] = answer.result(STATS_SECONDS)
    except (TimeoutError, UnreachableError):
        return None
    return told


def _together(told: Sequence[dict[str, Any]], past: Mapping[str, int]) -> dict[str, Any]:
    """Sums; the ways of serving are those of all."""
    whole: dict[str, Any] = {}
    for name in SUMS:
        whole[name] = sum(each.get(name, 0) for each in told) + past.get(name, 0)
    for name in ("adapters", "memory"):
        counts = Counter[str]()
        for each in told:
            counts.update(each.get(name, {}))
        whole[name] = dict(counts)
    for name in ("fast", "int8"):
        whole[name] = bool(told) and all(each.get(name) for each in told)
    return {**whole, "device": next((each["device"] for each in told if each), "cpu")}
