"""Answers through other servers: several vLLM replicas that follow one registry.

    [engine]
    urls = ["http://gpu1:8000", "http://gpu2:8000"]

One thread owns all connections. A request goes to the replica that runs the fewest of ours; if a
replica fails before the first token, the request goes to another. Setup: docs/scale.md.
"""

import asyncio
import atexit
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from chatbot.engine.protocol import (
    BASE,
    EngineBusyError,
    EngineClosedError,
    Request,
    UnknownAdapterError,
    UnreachableError,
)
from chatbot.engine.remote import remote_stream
from chatbot.engine.remote.replica import AdapterMissingError, ReplicaBusyError, ReplicaError
from chatbot.engine.remote.replica_pool import ReplicaPool
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import FinishReason, Stream
from chatbot.engine.text.thought_splitter import ThoughtSplitter
from chatbot.engine.validation import check_prompt, check_sampling, effective_max_length
from chatbot.model.adapter import verify_adapter
from chatbot.model.base import Base, end_token_ids
from chatbot.model.thought_format import ThoughtFormat, find_thought_format
from feedback.errors import TalkbackError

log = logging.getLogger("talkback")

CHECK_SECONDS = 1.0
"""How often each replica is checked."""
MAX_ATTEMPTS = 2
"""How often one request is sent to a replica: a second time if it lacked the adapter at first."""

T = TypeVar("T")


class RemoteEngine:
    """Serves one base through several replicas; see `Engine` for what the methods promise.

    Raises EngineError if no replica can be used at the start.
    """

    submit_blocks = True

    def __init__(
        self, base: Base, settings: EngineSettings, *, check_seconds: float = CHECK_SECONDS
    ) -> None:
        self.base, self.settings = base, settings
        self.max_length = effective_max_length(base.model, settings.max_length)
        self._end_token_ids = sorted(end_token_ids(base))
        self._marks = find_thought_format(base.tokenizer)
        self._pool = ReplicaPool(settings)
        # Changed on the loop's thread only; other threads read them.
        self._unloading: set[str] = set()
        self._num_running: Counter[str] = Counter()
        self._counts: Counter[str] = Counter(requests=0, prompt=0, decoded=0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        try:
            self._run(self._start(check_seconds))
        except BaseException:
            self.close()
            raise

    # -- What any thread may call

    def load(self, adapter_id: str, folder: Path) -> None:
        """Verify an adapter here, then load it on every replica that is up, or on none.

        Raises AdapterError, which names the replica that refuses; UnreachableError.
        """
        verify_adapter(folder, self.base, adapter_id)
        self._run(self._load(adapter_id, self._server_path(folder)))

    def unload(self, adapter_id: str) -> None:
        """Refuse new requests for an adapter; the replicas unload it after its last stream."""
        self._run(self._begin_unload(adapter_id))

    def adapters(self) -> list[str]:
        """Return the ids that requests may name, `BASE` first."""
        return [BASE, *self._pool.adapter_paths]

    @property
    def unavailable_reason(self) -> str | None:
        """Return why no replica can be used; None while one can."""
        any_available = any(replica.unavailable_reason is None for replica in self._pool.replicas)
        return None if any_available else self._pool.describe_failures()

    def submit(self, request: Request) -> Stream:
        """Send a request to a replica; return its stream once a replica has accepted it.

        Raises EngineBusyError, UnknownAdapterError, PromptTooLongError, UnreachableError,
        EngineClosedError, EngineError.
        """
        self._check(request)
        accepted: Future[None] = Future()

        def cancel() -> None:
            served.cancel()

        stream = Stream(len(request.prompt_ids), cancel)
        served = self._schedule(self._serve(request, stream, accepted))
        wait([accepted, served], return_when=FIRST_COMPLETED)
        if not accepted.done():
            raise EngineClosedError()
        accepted.result()
        return stream

    def stats(self) -> dict[str, Any]:
        """Return numbers for a status page: running streams, tokens so far, and every replica.

        What only the servers know is 0: their slots, their queues, their steps.
        """
        names = [*self.adapters(), *self._unloading]
        return {
            "slots": 0,
            "running": sum(self._num_running.values()),
            "waiting": 0,
            "adapters": {name: self._num_running[name] for name in names},
            "max_length": self.max_length,
            "device": "remote",
            **self._counts,
            "recalled": 0,
            "recalls": 0,
            "guessed": 0,
            "steps": 0,
            "replicas": [replica.stats() for replica in self._pool.replicas],
        }

    def close(self) -> None:
        """End every stream as cancelled, and close the connections; calling it again is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ending = asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop)
        ending.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        atexit.unregister(self.close)

    def _check(self, request: Request) -> None:
        check_sampling(request.sampling)
        check_prompt(request.prompt_ids, self.max_length)

    def _server_path(self, folder: Path) -> str:
        """Return the path at which the servers see an adapter's folder."""
        adapters_path = self.settings.adapters_path
        return (
            f"{adapters_path.rstrip('/')}/{folder.name}" if adapters_path else str(folder.resolve())
        )

    def _schedule(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the loop's thread and return its future. Raises EngineClosedError."""
        with self._lock:
            if self._closed:
                work.close()
                raise EngineClosedError()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop's thread and return its result. Raises EngineClosedError."""
        try:
            return self._schedule(work).result()
        except CancelledError as error:
            raise EngineClosedError() from error

    # -- Everything below runs on the loop's thread

    async def _start(self, check_seconds: float) -> None:
        await self._pool.start()
        self.max_length = min(self.max_length, self._pool.max_model_len or self.max_length)
        self._spawn(self._pool.monitor(check_seconds))

    async def _load(self, adapter: str, path: str) -> None:
        await self._pool.load(adapter, path)
        self._unloading.discard(adapter)

    async def _begin_unload(self, adapter: str) -> None:
        if adapter in self._pool.adapter_paths:
            self._pool.forget(adapter)
            self._unloading.add(adapter)
            self._unload_idle()

    def _unload_idle(self) -> None:
        """Unload from the replicas the adapters that are leaving and have no stream left."""
        for adapter in [name for name in self._unloading if not self._num_running[name]]:
            self._unloading.discard(adapter)
            self._spawn(self._pool.unload(adapter))

    async def _serve(self, request: Request, stream: Stream, accepted: "Future[None]") -> None:
        """Serve one request to its end: its stream is ended, or ``accepted`` gets the error."""
        try:
            stream.end(await self._answer_counted(request, stream, accepted))
        except asyncio.CancelledError:
            stream.end("cancelled")
        except Exception as error:  # a stream that is never ended would hang its reader
            if not isinstance(error, TalkbackError):
                log.exception("A request to a replica failed.")
            if accepted.done():
                stream.end("error", str(error))
            else:
                accepted.set_exception(error)

    async def _answer_counted(
        self, request: Request, stream: Stream, accepted: "Future[None]"
    ) -> FinishReason:
        """Answer one request, counted as running, and add its tokens to the totals."""
        if request.adapter not in self.adapters():
            raise UnknownAdapterError(request.adapter, self.adapters())
        self._num_running[request.adapter] += 1
        try:
            if self._marks is not None and request.sampling.thinking:
                request = await self._think(request, self._marks, stream, accepted)
            return await self._answer_with_retries(
                request,
                accepted,
                stream,
                lambda events: remote_stream.fill_stream(
                    events, stream, request.sampling.logprobs or 0
                ),
            )
        finally:
            self._num_running[request.adapter] -= 1
            self._counts.update(
                requests=1, prompt=stream.prompt_tokens, decoded=stream.completion_tokens
            )
            self._unload_idle()

    async def _think(
        self, request: Request, marks: ThoughtFormat, stream: Stream, accepted: "Future[None]"
    ) -> Request:
        """Have the thought generated, by a request of its own that ends with its budget; return
        the request whose prompt goes on after it."""
        tokenize = self.base.tokenizer
        closing = tokenize(marks.closing, add_special_tokens=False)["input_ids"]
        room = self.max_length - len(request.prompt_ids) - len(closing)
        budget = max(1, request.sampling.thought_budget(room))
        asked = replace(request.sampling, max_tokens=budget, stop=(), logprobs=None)
        splitter = ThoughtSplitter(marks, opened=marks.prefilled)
        await self._answer_with_retries(
            replace(request, sampling=asked),
            accepted,
            stream,
            lambda events: remote_stream.fill_thought(events, stream, splitter),
        )
        answer = replace(request, sampling=replace(request.sampling, thinking=0))
        if not splitter.marked:
            return answer
        text = marks.write(stream.thought)
        ids = list(tokenize(text, add_special_tokens=False)["input_ids"])
        stream.add_thought_tokens(ids)
        return replace(answer, prompt_ids=[*request.prompt_ids, *ids])

    async def _answer_with_retries(
        self,
        request: Request,
        accepted: "Future[None]",
        stream: Stream,
        fill: Callable[[AsyncIterator[dict[str, Any]]], Awaitable[FinishReason]],
    ) -> FinishReason:
        """Send a request to one replica after another until one has generated a token; ``fill``
        reads what it generates.

        Afterwards it is not sent again: the reader has seen text that another answer need not
        begin with. Raises EngineBusyError, UnreachableError, ReplicaError.
        """
        body, adapter = self._request_body(request), request.adapter
        attempts_left = dict.fromkeys(self._pool.replicas, MAX_ATTEMPTS)
        busy_error: ReplicaBusyError | None = None
        while (replica := self._pool.choose(adapter, attempts_left)) is not None:
            attempts_left[replica] -= 1
            try:
                async with replica.stream_completion(body) as events:
                    if not accepted.done():
                        accepted.set_result(None)
                    return await fill(events)
            except AdapterMissingError:
                await self._pool.restore(replica, adapter)
            except ReplicaError as error:
                log.warning("%s: %s", replica.url, error)
                if stream.first_token_ms is not None:
                    raise ReplicaError("The server that was answering broke off.") from error
                attempts_left[replica] = 0
                busy_error = error if isinstance(error, ReplicaBusyError) else busy_error
        if busy_error is not None:
            raise EngineBusyError(sum(self._num_running.values()), busy_error.retry_after)
        raise UnreachableError(f"No server can speak as {adapter} now. Try again in a while.")

    def _request_body(self, request: Request) -> dict[str, Any]:
        model = self._pool.model_name(request.adapter)
        max_tokens = min(request.sampling.max_tokens, self.max_length - len(request.prompt_ids))
        if self.settings.prompt == "text":
            return remote_stream.text_body(request, model, max_tokens, self.base.tokenizer)
        return remote_stream.token_body(request, model, max_tokens, self._end_token_ids)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background; its task is kept, for the loop holds no reference."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shutdown(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._pool.close()
