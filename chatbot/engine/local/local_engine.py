"""The in-process engine: one worker thread owns the model and moves all streams on together.

Each step decodes one token of every running stream and reads a chunk of the next prompts, whatever
adapters they speak with. Adapters come and go between two steps.
"""

import atexit
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chatbot.engine.local.detokenizer import Detokenizer
from chatbot.engine.local.multi_lora import Prepared
from chatbot.engine.local.sampler import Sampler
from chatbot.engine.local.scheduler import Batch, Row
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
from chatbot.engine.validation import check_prompt, check_sampling, effective_max_length
from chatbot.model import lora
from chatbot.model.base import Base

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.1
"""With nothing to do: until then somebody may go on with what was said last."""


class TorchEngine:
    """Continuous batching over transformers' forward; see `Engine` for what the methods promise."""

    submit_blocks = False
    unavailable_reason = None

    def __init__(self, base: Base, settings: EngineSettings | None = None, tried: int = 0) -> None:
        """`tried` is the number of threads that suits the model, where that is known."""
        self.base = base
        self.settings = settings or EngineSettings()
        model = base.model.to(device(self.settings.device))
        self.max_length = effective_max_length(model, self.settings.max_length)
        self.threads, self._tried = 0, tried
        """CPU threads of a step; 0 until it has `begun`."""
        self.parameters = model.num_parameters()  # before the fast path takes them
        self._like = next(model.parameters())
        self._batch = Batch(base, self.settings, self.max_length, self._ended)
        # Shared between threads and touched under the lock only.
        self._lock = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._orders: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._adapters: dict[str, bool] = {}
        """Loaded adapters -> whether they take new requests."""
        self._users: Counter[str] = Counter()
        self._requests = 0
        self._retry_after = RetryAfter()
        self._closed = False
        self._begun: Future[None] = Future()
        self._loading = threading.Lock()
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()
        # Python's own exit would tear the worker out of the middle of a step.
        atexit.register(self.close)

    # -- What any thread may call

    def begun(self) -> None:
        """Block until the worker takes requests; raises what has kept it from that."""
        self._begun.result()

    def load(self, adapter_id: str, folder: Path) -> None:
        """Verify and load an adapter; blocks until it can be asked. Raises `AdapterError`."""
        with self._loading:
            with self._lock:
                if adapter_id in self._adapters:
                    self._adapters[adapter_id] = True
                    return
            adapter = lora.verify(folder, self.base)
            if adapter.id != adapter_id:
                raise lora.AdapterError(f"{folder} holds {adapter.id}, not {adapter_id}.")
            prepared = self._batch.adapters.prepare(lora.load_matrices(folder), self._like)
            self._order(lambda: self._install(adapter_id, prepared))

    def unload(self, adapter_id: str) -> None:
        """Take no new requests for it; it leaves memory when its last stream has ended."""
        with self._lock:
            if adapter_id in self._adapters:
                self._adapters[adapter_id] = False
                self._lock.notify()

    def adapters(self) -> list[str]:
        """What can be asked now, `BASE` first."""
        with self._lock:
            return [BASE, *(name for name, open_ in self._adapters.items() if open_)]

    def submit(self, request: Request) -> Stream:
        """Queue a request and return its stream.

        Raises EngineBusyError, UnknownAdapterError, PromptTooLongError, EngineClosedError.
        """
        row = self._row(request)
        with self._lock:
            if self._closed:
                raise EngineClosedError()
            if request.adapter != BASE and not self._adapters.get(request.adapter):
                raise UnknownAdapterError(request.adapter, [BASE, *self._adapters])
            if self._taken() >= self.settings.slots + self.settings.queue:
                raise EngineBusyError(
                    len(self._waiting), self._retry_after.estimate_seconds(len(self._waiting))
                )
            self._users[request.adapter] += 1
            self._waiting.append(row)
            self._lock.notify()
        return row.stream

    def stats(self) -> dict[str, Any]:
        """Streams running and waiting, what each adapter has, tokens and steps since the start."""
        with self._lock:
            counts = self._batch.counts
            return {
                "slots": self.settings.slots,
                "running": self._taken() - len(self._waiting),
                "waiting": len(self._waiting),
                "adapters": {name: self._users[name] for name in [BASE, *self._adapters]},
                "max_length": self.max_length,
                "device": str(self._like.device),
                "requests": self._requests,
                "fast": self._batch.fast,
                "int8": self._batch.int8,
                "memory": self._batch.memory(),
                **{name: counts[name] for name in TOKEN_COUNTERS},
            }

    @property
    def grows(self) -> bool:
        """Whether it computes on as many cores as are there for it."""
        return self._batch.grows

    def share(self, cores: int) -> None:
        """So many cores are there for it from now on; it has `begun`."""
        self._batch.share(cores)

    def close(self) -> None:
        """End every stream as cancelled and give the model its own forward back."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._worker.join()
        atexit.unregister(self.close)

    def _row(self, request: Request) -> Row:
        check_sampling(request.sampling)
        prompt = request.prompt_ids
        check_prompt(prompt, self.max_length)
        return Row(
            request=request,
            stream=Stream(len(prompt), self._wake),
            sampler=Sampler(request.sampling, prompt),
            words=Detokenizer(self.base.tokenizer, request.sampling.stop),
            limit=min(request.sampling.max_tokens, self.max_length - len(prompt)),
        )

    def _taken(self) -> int:
        return sum(self._users.values())

    def _wake(self) -> None:
        with self._lock:
            self._lock.notify()

    def _order(self, work: Callable[[], None]) -> None:
        """Have the worker do something between two steps; returns when it is done."""
        done: Future[None] = Future()
        with self._lock:
            if self._closed:
                raise EngineClosedError()
            self._orders.append((work, done))
            self._lock.notify()
        done.result()

    # -- The worker: everything below runs on its thread

    def _work(self) -> None:
        _carry_out(self._settle, self._begun)
        with torch.inference_mode():
            while self._begun.exception() is None and self._wait():
                with self._surviving():
                    self._tidy()
                    self._batch.step(self.settings.chunk, self._next)
        self._stop()

    def _settle(self) -> None:
        self.threads = self._batch.settle(self._tried)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False once closed."""
        while True:
            with self._lock:
                pause = PAUSE_SECONDS if self._batch.restless else None
                if self._lock.wait_for(self._wanted, pause):
                    return not self._closed
            with self._surviving():
                self._batch.rest()

    def _wanted(self) -> bool:
        return bool(self._closed or self._taken() or self._orders or self._idle())

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """A step that fails ends its streams and not the engine."""
        try:
            yield
        except Exception as error:  # whatever the model raises, the next request must be served
            log.exception("A step of the engine failed; its streams end here.")
            self._batch.fail(error)

    def _tidy(self) -> None:
        """Between two steps: adapters in and out, cancelled streams gone."""
        with self._lock:
            orders = list(self._orders)
            self._orders.clear()
            gone = [row for row in self._waiting if row.stream.cancelled]
            self._waiting = deque(row for row in self._waiting if not row.stream.cancelled)
        for work, done in orders:
            _carry_out(work, done)
        for row in gone:
            self._ended(row, "cancelled", None)
        self._batch.reap()
        self._drop_idle()

    def _next(self) -> Row | None:
        """The request that waits longest."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _install(self, adapter: str, prepared: Prepared) -> None:
        self._batch.install(adapter, prepared)
        with self._lock:
            self._adapters[adapter] = True

    def _idle(self) -> list[str]:
        """Unloaded adapters whose last stream has ended."""
        return [
            name for name, wanted in self._adapters.items() if not wanted and self._users[name] == 0
        ]

    def _drop_idle(self) -> None:
        with self._lock:
            idle = self._idle()
            for name in idle:
                del self._adapters[name]
        for name in idle:
            self._batch.drop(name)

    def _ended(self, row: Row, finish: FinishReason, error: str | None) -> None:
        with self._lock:
            self._users[row.request.adapter] -= 1
            self._requests += 1
        self._retry_after.record_end()
        row.stream.end(finish, error)

    def _stop(self) -> None:
        """Closed: whoever still waits is told, and the model is as it was."""
        with self._lock:
            self._closed = True
            rows = [*self._batch.rows(), *self._waiting]
            orders = list(self._orders)
        for row in rows:
            self._ended(row, "cancelled", None)
        for _, done in orders:
            done.set_exception(EngineClosedError())
        self._batch.detach()


def _carry_out(work: Callable[[], None], done: "Future[None]") -> None:
    try:
        work()
    except Exception as error:  # it belongs to the thread that gave the order
        done.set_exception(error)
    else:
        done.set_result(None)


def device(name: str) -> torch.device:
    """What a setting names; auto is a GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
