"""Workers that stand still, idle, in a step or while they load: ended, and started anew."""

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from chatbot.engine import factory
from chatbot.engine.protocol import (
    BASE,
    Request,
    Sampling,
    UnreachableError,
)
from chatbot.engine.settings import EngineSettings
from chatbot.engine.workers import workers_engine
from chatbot.engine.workers.worker_handle import WorkerHandle
from chatbot.engine.workers.workers_engine import WorkersEngine
from chatbot.model.base import load_base
from feedback.settings import Home
from tests.fixtures import tiny_models
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.waiting import wait_until
from tests.fixtures.worker_requests import CHAT, LONG, PROMPTS, begun, long, say, stopped, worker_of

STALL = EngineSettings(workers=1, threads=1, slots=16, stall_seconds=2)


@pytest.fixture(scope="module")
def stall_engine(tiny_base: Path) -> Iterator[WorkersEngine]:
    _, engine = factory.start_engine(STALL, str(tiny_base))
    assert isinstance(engine, WorkersEngine)
    yield engine
    engine.close()


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    return tiny_models.write_adapter(tmp_path, load_base(str(tiny_base)), seed=1)


def answers(engine: WorkersEngine) -> bool:
    return engine.submit(Request(PROMPTS[0], BASE, Sampling(max_tokens=2))).wait(20)


@pytest.mark.parametrize("idle", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_worker_that_stands_still_is_ended_with_a_reason_and_started_anew(
    stall_engine: WorkersEngine, idle: bool
) -> None:
    wait_until(lambda: stall_engine.unavailable_reason is None, 60)
    streams = [] if idle else [begun(stall_engine.submit(long(prompt=n % 4))) for n in range(16)]
    with stopped(stall_engine._workers[0].process.pid or 0):
        wait_until(lambda: stall_engine.unavailable_reason is not None)
        assert stall_engine._workers, "not ready before it is ended"
        with pytest.raises(UnreachableError, match="stands still"):
            stall_engine.submit(long())
        assert all(stream.wait(10) for stream in streams)
        wait_until(lambda: stall_engine._workers == [])
    assert {stream.finish for stream in streams} <= {"error"}
    assert all("stood still for 2 s and was ended" in str(stream.error) for stream in streams)
    wait_until(lambda: stall_engine.unavailable_reason is None, 60)
    assert answers(stall_engine)


def test_a_worker_that_is_continued_in_time_goes_on_as_if_nothing_was(
    stall_engine: WorkersEngine,
) -> None:
    wait_until(lambda: stall_engine.unavailable_reason is None, 60)
    worker, stream = stall_engine._workers[0], begun(stall_engine.submit(long()))
    with stopped(worker.process.pid or 0):
        wait_until(lambda: stall_engine.unavailable_reason is not None)
    tokens = len(stream.ids)
    wait_until(lambda: stall_engine.unavailable_reason is None and len(stream.ids) > tokens)
    assert stream.finish is None and stall_engine._workers == [worker]
    stream.cancel()
    assert stream.wait(10)


def test_nobody_who_sends_a_request_waits_for_a_stopped_worker(stall_engine: WorkersEngine) -> None:
    wait_until(lambda: stall_engine.unavailable_reason is None, 60)
    request = Request([10] * 500, BASE, Sampling(max_tokens=1))
    with stopped(stall_engine._workers[0].process.pid or 0):
        streams = [stall_engine.submit(request) for _ in range(64)]  # more than the pipe holds
        assert stall_engine._workers, "all were taken before the worker was ended"
    assert all(stream.wait(20) for stream in streams)


@pytest.mark.slow
def test_a_first_worker_that_hangs_while_it_loads_is_started_anew(tiny_base: Path) -> None:
    worker = WorkerHandle()
    with stopped(worker.process.pid or 0):
        _, engine = factory.start_engine(STALL, str(tiny_base), first_worker=worker)
    assert isinstance(engine, WorkersEngine)
    assert worker.process.exitcode == -signal.SIGKILL and engine._workers != [worker]
    assert answers(engine)
    engine.close()


@pytest.mark.slow
def test_a_worker_in_which_a_load_hangs_alone_is_started_anew(
    stall_engine: WorkersEngine, tmp_path: Path
) -> None:
    """Its engine goes on meanwhile, and counts what it does."""
    wait_until(lambda: stall_engine.unavailable_reason is None, 60)
    os.mkfifo(tmp_path / "manifest.json")  # nobody writes into it
    (worker,) = stall_engine._workers
    hung = worker.call("load", "a-000000000000", tmp_path)
    assert answers(stall_engine)
    with pytest.raises(UnreachableError, match="stood still for 2 s and was ended"):
        hung.result(60)
    wait_until(lambda: stall_engine.unavailable_reason is None, 60)
    assert stall_engine._workers != [worker] and answers(stall_engine)


@pytest.mark.slow
def test_workers_that_are_stopped_delay_no_shutdown(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_engine, "CLOSE_SECONDS", 3600)
    settings = EngineSettings(workers=2, threads=1, stall_seconds=600)
    _, engine = factory.start_engine(settings, str(tiny_base))
    assert isinstance(engine, WorkersEngine)
    wait_until(lambda: len(engine._workers) == 2, 60)
    processes = [worker.process for worker in engine._workers]
    with stopped(processes[0].pid or 0), stopped(processes[1].pid or 0):
        engine.close()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2


@pytest.mark.slow
def test_loading_an_adapter_ends_with_the_worker_that_stands_still(
    stall_engine: WorkersEngine, adapter: Path
) -> None:
    wait_until(lambda: stall_engine.unavailable_reason is None, 60)
    process_id = stall_engine._workers[0].process.pid or 0
    with stopped(process_id), pytest.raises(UnreachableError, match="stood still"):
        stall_engine.load(adapter.name, adapter)
    wait_until(lambda: stall_engine.unavailable_reason is None, 60)
    stall_engine.load(adapter.name, adapter)
    assert adapter.name in stall_engine.adapters()


@pytest.mark.slow
def test_a_server_whose_worker_is_stopped_answers_everybody_and_recovers_by_itself(
    start_server: Callable[..., ServerProcess], home: Home
) -> None:
    home.toml.write_text("[engine]\nworkers = 1\nthreads = 1\nslots = 8\nstall_seconds = 2\n")
    server, body = start_server().ready(), {**CHAT, "stream": True, "max_tokens": LONG}
    body["logit_bias"] = {str(token): -100 for token in range(5)}
    begun, endings = threading.Semaphore(0), queue.SimpleQueue[tuple[int, str | None, str]]()

    def chat() -> None:
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=body, timeout=60
        ) as sent:
            text = ""
            for piece in sent.iter_text():
                text += piece
                begun.release()
            endings.put((sent.status_code, sent.headers.get("retry-after"), text))

    threads = [threading.Thread(target=chat) for _ in range(16)]  # the other half of them waits
    for thread in threads:
        thread.start()
    assert all(begun.acquire(timeout=30) for _ in range(8))
    with stopped(worker_of(server)):
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        ended = [endings.get(timeout=30) for _ in threads]
    assert all("stood still" in text for _, _, text in ended)
    assert {status for status, _, _ in ended} == {200, 503}
    assert all(retry_after for status, retry_after, _ in ended if status == 503)
    wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, 60)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert say(http) == 200
