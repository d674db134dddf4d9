"""Runs the model in this process: one worker thread owns it and steps all streams together.

Each step decodes every running sequence and prefills a chunk of the next prompts, whatever adapters
they have. Adapters are installed and dropped between two steps.
"""

import atexit
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chatbot.engine.local.multi_lora import PreparedAdapter
from chatbot.engine.local.runners.select_runner import Truth
from chatbot.engine.local.sampler import Sampler
from chatbot.engine.local.scheduler import Scheduler
from chatbot.engine.local.sequence import Sequence
from chatbot.engine.local.waiting_queue import WaitingQueue
from chatbot.engine.progress import Progress, ProgressWatch
from chatbot.engine.protocol import (
    BASE,
    TOKEN_COUNTERS,
    EngineBusyError,
    EngineClosedError,
    Request,
    UnknownAdapterError,
)
from chatbot.engine.retry_after import RetryAfter
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import FinishReason, Stream
from chatbot.engine.text.detokenizer import Detokenizer
from chatbot.engine.text.thought_splitter import split_thoughts
from chatbot.engine.validation import check_prompt, check_sampling, effective_max_length
from chatbot.model.adapter import verify_adapter
from chatbot.model.base import Base
from chatbot.model.thought_format import find_thought_format

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.1
"""So long without work, and a deferred copy of a prefix is made: the next turn of a conversation
may come before, and then it spares the copy."""

PULSE_SECONDS = 0.5
"""So often an engine without work shows that it would notice some."""


class LocalEngine:
    """Answers by continuous batching in this process; see `Engine` for what the methods promise."""

    submit_blocks = False

    def __init__(
        self,
        base: Base,
        settings: EngineSettings | None = None,
        measured_threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Start the worker thread; `measured_threads` is what a trial elsewhere found, or 0. What
        it does is counted in `progress`."""
        self.base = base
        self.settings = settings or EngineSettings()
        model = base.model.to(resolve_device(self.settings.device))
        self.max_length = effective_max_length(model, self.settings.max_length)
        self.threads, self._measured_threads = 0, measured_threads
        """CPU threads of a step; 0 until the engine is ready."""
        self._marks = find_thought_format(base.tokenizer)
        closing = self._marks.closing if self._marks else ""
        self._closing_ids = list(base.tokenizer(closing, add_special_tokens=False)["input_ids"])
        self.parameters = model.num_parameters()  # before a runner borrows the weights
        self._like = next(model.parameters())
        self._progress = progress or Progress()
        self._watch = ProgressWatch(self._progress, os.getpid())
        self.scheduler = Scheduler(
            base, self.settings, self.max_length, self._finish, self._progress
        )
        """For the worker thread; others only read its counts and call `prepare_adapter`."""
        # Shared between threads and touched under the lock only.
        self._lock = threading.Condition()
        self._waiting = WaitingQueue()
        self._pending_calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._adapters: dict[str, bool] = {}
        """Loaded adapters -> whether they take new requests."""
        self._num_active: Counter[str] = Counter()
        self._requests = 0
        self._retry_after = RetryAfter()
        self._closed = False
        self._ready: Future[None] = Future()
        self._loading = threading.Lock()
        self._worker = threading.Thread(target=self._run, name="engine", daemon=True)
        self._worker.start()
        # Python's own exit would tear the worker out of the middle of a step.
        atexit.register(self.close)

    # -- What any thread may call

    def wait_until_ready(self) -> None:
        """Block until the worker takes requests; raise what has kept it from that."""
        self._ready.result()

    def load(self, adapter_id: str, folder: Path) -> None:
        """Verify and load an adapter; return when it takes requests. Raises AdapterError."""
        with self._loading:
            with self._lock:
                if adapter_id in self._adapters:
                    self._adapters[adapter_id] = True
                    return
            with self._progress.loading():
                adapter = verify_adapter(folder, self.base, adapter_id)
                prepared, truth = self.scheduler.prepare_adapter(adapter_id, adapter.matrices)
            self.call_between_steps(lambda: self._install(adapter_id, prepared, truth))

    def unload(self, adapter_id: str) -> None:
        """Take no new requests for it; it leaves memory when its last stream has ended."""
        with self._lock:
            if adapter_id in self._adapters:
                self._adapters[adapter_id] = False
                self._lock.notify()

    def adapters(self) -> list[str]:
        """Return the adapters that take requests now, `BASE` first."""
        with self._lock:
            return [BASE, *(name for name, accepts in self._adapters.items() if accepts)]

    def submit(self, request: Request) -> Stream:
        """Queue a request and return its stream.

        Raises EngineBusyError, UnknownAdapterError, PromptTooLongError, EngineClosedError.
        """
        sequence = self._new_sequence(request)
        with self._lock:
            if self._closed:
                raise EngineClosedError()
            if request.adapter != BASE and not self._adapters.get(request.adapter):
                raise UnknownAdapterError(request.adapter, [BASE, *self._adapters])
            if self._total_active() >= self.settings.slots + self.settings.queue:
                raise EngineBusyError(
                    len(self._waiting), self._retry_after.estimate_seconds(len(self._waiting))
                )
            self._num_active[request.adapter] += 1
            self._waiting.append(sequence)
            self._lock.notify()
        return sequence.stream

    def stats(self) -> dict[str, Any]:
        """Return streams running, waiting and by adapter, and tokens and steps since the start."""
        with self._lock:
            counts = self.scheduler.counts
            return {
                "slots": self.settings.slots,
                "running": self._total_active() - len(self._waiting),
                "waiting": len(self._waiting),
                "adapters": {name: self._num_active[name] for name in [BASE, *self._adapters]},
                "max_length": self.max_length,
                "device": str(self._like.device),
                "requests": self._requests,
                "fast": self.scheduler.is_fast,
                "int8": self.scheduler.is_int8,
                "runner": self.scheduler.runner.name,
                "notes": self.scheduler.notes,
                "memory": self.scheduler.memory(),
                **{name: counts[name] for name in TOKEN_COUNTERS},
            }

    @property
    def unavailable_reason(self) -> str | None:
        """Return why no request can be answered while the worker thread stands still; else None."""
        if self._watch.look() < self.settings.unready_seconds:
            return None
        return f"The engine has stood still for {self._watch.still_seconds:.0f} s."

    @property
    def uses_spare_cores(self) -> bool:
        """Tell whether steps use more cores while these are free."""
        return self.scheduler.uses_spare_cores

    def set_available_cores(self, cores: int) -> None:
        """Let steps use up to so many cores from now on; only once the engine is ready."""
        self.scheduler.set_available_cores(cores)

    def call_between_steps(self, work: Callable[[], None]) -> None:
        """Have the worker call `work` between two steps; return when done. Raises its error."""
        done: Future[None] = Future()
        with self._lock:
            if self._closed:
                raise EngineClosedError()
            self._pending_calls.append((work, done))
            self._lock.notify()
        done.result()

    def close(self) -> None:
        """End every stream as cancelled and give the model its own forward back."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._worker.join()
        atexit.unregister(self.close)

    def _new_sequence(self, request: Request) -> Sequence:
        check_sampling(request.sampling)
        prompt, sampling = request.prompt_ids, request.sampling
        check_prompt(prompt, self.max_length)
        room = self.max_length - len(prompt)
        return Sequence(
            request=request,
            stream=Stream(len(prompt), self._notify),
            sampler=Sampler(sampling, prompt),
            detokenizer=Detokenizer(
                self.base.tokenizer, sampling.stop, split_thoughts(self._marks, sampling)
            ),
            room=room,
            thought_budget=sampling.thought_budget(room - len(self._closing_ids)),
            closing_ids=self._closing_ids,
        )

    def _total_active(self) -> int:
        return sum(self._num_active.values())

    def _notify(self) -> None:
        with self._lock:
            self._lock.notify()

    # -- The worker: everything below runs on its thread

    def _run(self) -> None:
        self._progress.begin_on_this_thread()
        _call_into(self._choose_threads, self._ready)
        with torch.inference_mode():
            while self._ready.exception() is None and self._wait_for_work():
                with self._failing_streams_only():
                    self._between_steps()
                    self.scheduler.step(self._next_waiting)
        self._shut_down()

    def _choose_threads(self) -> None:
        self.threads = self.scheduler.choose_threads(self._measured_threads)

    def _wait_for_work(self) -> bool:
        """Sleep until there is work and return True; False once closed."""
        while True:
            self._progress.advance()
            with self._lock:
                deferred = self.scheduler.prefixes.has_deferred_copy
                pause = IDLE_SECONDS if deferred else PULSE_SECONDS
                if self._lock.wait_for(self._has_work, pause):
                    return not self._closed
            with self._failing_streams_only():
                self.scheduler.copy_deferred_prefix()

    def _has_work(self) -> bool:
        return bool(
            self._closed or self._total_active() or self._pending_calls or self._idle_adapters()
        )

    @contextmanager
    def _failing_streams_only(self) -> Iterator[None]:
        """End the streams of a step that fails, and not the engine."""
        try:
            yield
        except Exception as error:  # whatever the model raises, the next request must be served
            log.exception("A step of the engine failed; its streams end here.")
            self.scheduler.fail_all(error)

    def _between_steps(self) -> None:
        """Install and drop adapters and end cancelled streams, which no step may see half done."""
        with self._lock:
            calls = list(self._pending_calls)
            self._pending_calls.clear()
            cancelled = self._waiting.remove_cancelled()
        for work, done in calls:
            _call_into(work, done)
        for sequence in cancelled:
            self._finish(sequence, "cancelled", None)
        self.scheduler.remove_cancelled()
        self._drop_idle_adapters()

    def _next_waiting(self) -> Sequence | None:
        with self._lock:
            return self._waiting.pop_next()

    def _install(self, adapter: str, prepared: PreparedAdapter, truth: Truth | None) -> None:
        self.scheduler.install_adapter(adapter, prepared, truth)
        with self._lock:
            self._adapters[adapter] = True

    def _idle_adapters(self) -> list[str]:
        """Return the unloaded adapters whose last stream has ended."""
        return [
            name
            for name, accepts in self._adapters.items()
            if not accepts and self._num_active[name] == 0
        ]

    def _drop_idle_adapters(self) -> None:
        with self._lock:
            idle = self._idle_adapters()
            for name in idle:
                del self._adapters[name]
        for name in idle:
            self.scheduler.drop_adapter(name)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: str | None) -> None:
        with self._lock:
            self._num_active[sequence.request.adapter] -= 1
            self._requests += 1
        self._retry_after.record_end()
        sequence.stream.end(reason, error)

    def _shut_down(self) -> None:
        """End all streams as cancelled, refuse pending calls and restore the model's weights."""
        with self._lock:
            self._closed = True
            sequences = [*self.scheduler.sequences, *self._waiting]
            calls = list(self._pending_calls)
        for sequence in sequences:
            self._finish(sequence, "cancelled", None)
        for _, done in calls:
            done.set_exception(EngineClosedError())
        self.scheduler.detach()


def _call_into(work: Callable[[], None], done: "Future[None]") -> None:
    """Call `work` and give its end or its error to the thread that waits for `done`."""
    try:
        work()
    except Exception as error:  # it belongs to the thread that waits
        done.set_exception(error)
    else:
        done.set_result(None)


def resolve_device(name: str) -> torch.device:
    """Return the device that a setting names; "auto" is a GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
