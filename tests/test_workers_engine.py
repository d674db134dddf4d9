"""Workers: the answers, how requests are spread, and what is left when a process dies."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from chatbot.engine import factory
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.machine.hardware import available_cores
from chatbot.engine.protocol import (
    BASE,
    Engine,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    PromptTooLongError,
    Request,
    Sampling,
    UnknownAdapterError,
    UnreachableError,
)
from chatbot.engine.settings import EngineSettings
from chatbot.engine.workers.workers_engine import WorkersEngine
from chatbot.model.adapter import AdapterError
from chatbot.model.base import load_base
from feedback.settings import Home
from tests.fixtures import tiny_models
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.waiting import wait_until
from tests.fixtures.worker_requests import PROMPTS, begun, long, say, worker_of

SLOTS, QUEUE = 2, 3


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base, folder = load_base(str(tiny_base)), tmp_path_factory.mktemp("adapters")
    return [tiny_models.write_adapter(folder, base, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def shared_engine(tiny_base: Path, adapters: list[Path]) -> Iterator[WorkersEngine]:
    """Start two workers with both adapters."""
    settings = EngineSettings(workers=2, threads=1, slots=SLOTS, queue=QUEUE)
    _, engine = factory.start_engine(settings, str(tiny_base))
    assert isinstance(engine, WorkersEngine)
    for folder in adapters:
        engine.load(folder.name, folder)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine: WorkersEngine) -> WorkersEngine:
    wait_until(
        lambda: len(shared_engine._workers) == 2 and shared_engine.stats()["running"] == 0, 60
    )
    return shared_engine


def test_it_says_what_the_engine_says_in_this_process(
    engine: WorkersEngine, tiny_base: Path, adapters: list[Path]
) -> None:
    local = LocalEngine(load_base(str(tiny_base)), EngineSettings(threads=1))
    for folder in adapters:
        local.load(folder.name, folder)
    adapter_ids = [BASE, *(folder.name for folder in adapters)]
    sampling = Sampling(max_tokens=20, temperature=0.8, seed=7, logprobs=2)
    requests = [Request(prompt, adapter, sampling) for prompt in PROMPTS for adapter in adapter_ids]
    for request in requests:
        expected, stream = local.submit(request), engine.submit(request)
        deltas = list(stream)
        assert expected.wait(60)
        assert (stream.ids, deltas, stream.finish) == (
            expected.ids,
            expected.deltas,
            expected.finish,
        )
        assert stream.token_counts == expected.token_counts
        assert [c.token for c in stream.logprobs] == [c.token for c in expected.logprobs]
        assert stream.first_token_ms is not None and stream.total_ms is not None
    local.close()


def test_cores_are_there_for_those_who_speak(engine: WorkersEngine) -> None:
    def shares() -> list[int]:
        return [worker._cores for worker in engine._workers if worker.num_streams]

    first = begun(engine.submit(long()))
    assert shares() == [available_cores()]
    second = begun(engine.submit(long(prompt=1)))
    assert shares() == [available_cores() // 2] * 2
    first.cancel()
    wait_until(lambda: shares() == [available_cores()])
    second.cancel()


def test_streams_are_spread_over_the_workers(engine: WorkersEngine) -> None:
    streams = [begun(engine.submit(long(prompt=n))) for n in range(4)]
    assert [worker.num_streams for worker in engine._workers] == [2, 2]
    stats = engine.stats()
    assert (stats["running"], stats["slots"], stats["workers"]) == (4, 2 * SLOTS, 2)
    for stream in streams:
        stream.cancel()
    assert all(stream.wait(10) and stream.finish == "cancelled" for stream in streams)
    assert all(stream.text for stream in streams)
    wait_until(lambda: engine.stats()["running"] == 0)


def test_more_than_slots_and_queue_are_turned_away(engine: WorkersEngine) -> None:
    streams = [engine.submit(long()) for _ in range(2 * SLOTS + QUEUE)]
    with pytest.raises(EngineBusyError) as caught:
        engine.submit(long())
    assert caught.value.retry_after >= 1
    for stream in streams:
        stream.cancel()
    assert all(stream.wait(10) for stream in streams)
    assert engine.submit(Request(PROMPTS[0], BASE, Sampling(max_tokens=2))).wait(10)


@pytest.mark.parametrize(
    "request_, error",
    [
        (Request([], BASE), EngineError),
        (Request([5] * 10_000, BASE), PromptTooLongError),
        (Request([5], "a-000000000000"), UnknownAdapterError),
        (Request([5], BASE, Sampling(temperature=-1)), EngineError),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(
    engine: WorkersEngine, request_: Request, error: type[EngineError]
) -> None:
    with pytest.raises(error):
        engine.submit(request_)


def test_an_adapter_leaves_every_worker_when_its_last_stream_has_ended(
    engine: WorkersEngine, adapters: list[Path]
) -> None:
    folder = adapters[1]
    stream = begun(engine.submit(long(folder.name)))
    engine.unload(folder.name)
    assert folder.name not in engine.adapters()
    with pytest.raises(UnknownAdapterError):
        engine.submit(long(folder.name))
    assert engine.stats()["adapters"][folder.name] == 1 and stream.finish is None
    stream.cancel()
    wait_until(lambda: folder.name not in engine.stats()["adapters"])
    engine.load(folder.name, folder)
    assert folder.name in engine.adapters()


def test_a_damaged_adapter_is_refused_and_the_others_speak(
    engine: WorkersEngine, adapters: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError):
        engine.load("a-000000000000", adapters[0])
    assert engine.submit(Request(PROMPTS[0], adapters[0].name, Sampling(max_tokens=2))).wait(10)


@pytest.mark.slow
def test_a_worker_that_dies_takes_only_its_own_streams_and_comes_back(
    engine: WorkersEngine, adapters: list[Path]
) -> None:
    counted = engine.stats()["decoded"]
    streams = [begun(engine.submit(long(adapters[0].name, n))) for n in range(2)]
    first, second = engine._workers
    os.kill(first.process.pid or 0, signal.SIGKILL)
    wait_until(lambda: any(stream.finish for stream in streams))
    ended = [stream for stream in streams if stream.finish]
    assert [stream.finish for stream in ended] == ["error"]
    assert "ended with code -9" in str(ended[0].error)
    assert engine.unavailable_reason is None and engine.stats()["decoded"] >= counted
    os.kill(second.process.pid or 0, signal.SIGKILL)
    wait_until(lambda: engine.unavailable_reason is not None)
    with pytest.raises(UnreachableError, match="started again"):
        engine.submit(long())
    assert all(stream.finish == "error" for stream in streams)
    wait_until(lambda: engine.unavailable_reason is None, 60)
    answer = engine.submit(Request(PROMPTS[0], adapters[0].name, Sampling(max_tokens=4)))
    assert answer.wait(10) and answer.finish in ("stop", "length")


def test_close_ends_streams_as_cancelled_and_all_processes(tiny_base: Path) -> None:
    _, engine = factory.start_engine(EngineSettings(workers=1, threads=1), str(tiny_base))
    assert isinstance(engine, WorkersEngine) and isinstance(engine, Engine)
    stream = begun(engine.submit(long()))
    processes = [worker.process for worker in engine._workers]
    engine.close()
    assert stream.finish == "cancelled" and stream.text
    assert [process.exitcode for process in processes] == [0]
    with pytest.raises(EngineClosedError):
        engine.submit(long())


@pytest.mark.slow
def test_a_server_outlives_its_worker_and_the_worker_not_its_server(
    start_server: Callable[..., ServerProcess], home: Home
) -> None:
    home.toml.write_text("[engine]\nworkers = 1\nthreads = 1\n")
    server = start_server().ready()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert say(http) == 200
        os.kill(worker_of(server), signal.SIGKILL)
        wait_until(lambda: http.get("/readyz").status_code == 503)
        assert say(http) == 503 and http.get("/healthz").status_code == 200
        wait_until(lambda: http.get("/readyz").status_code == 200)
        assert say(http) == 200
    worker = worker_of(server)
    server.process.kill()
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), 20)
