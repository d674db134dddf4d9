"""Workers: the answers, how requests are spread, and what is left when a process dies."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from chatbot.engine import factory
from chatbot.engine.hardware import available_cores
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.progress import Progress
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
from chatbot.engine.stream import Stream, TokenLogprob
from chatbot.engine.workers import worker_process
from chatbot.engine.workers.capacity import MAX_WORKERS, worker_count
from chatbot.engine.workers.messages import UpdateCollector, WorkerConfig, WorkerInfo, apply_update
from chatbot.engine.workers.router import BLOCK_TOKENS, SMALL_BATCH, PrefixRouter
from chatbot.engine.workers.worker_handle import WorkerHandle
from chatbot.engine.workers.workers_engine import WorkersEngine
from chatbot.model.adapter import AdapterError
from chatbot.model.base import load_base
from feedback.settings import Home
from tests.fakes.racing_stream import RacingStream
from tests.fixtures import tiny_models
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.waiting import wait_until

SLOTS, QUEUE, LONG = 2, 3, 3000
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
PROMPTS = [[10 + n, *range(20, 26)] for n in range(4)]


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
    wait_until(lambda: len(shared_engine._workers) == 2 and shared_engine.stats()["running"] == 0)
    return shared_engine


def long(adapter: str = BASE, prompt: int = 0) -> Request:
    """Return a request whose answer ends only when it is cancelled."""
    bias = tuple((token, -100.0) for token in range(5))
    return Request(PROMPTS[prompt], adapter, Sampling(max_tokens=LONG, logit_bias=bias))


def begun(stream: Stream) -> Stream:
    wait_until(lambda: bool(stream.ids) or stream.finish is not None)
    return stream


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
    wait_until(lambda: engine.unavailable_reason is None)
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


def test_other_weights_than_the_servers_are_refused(tiny_base: Path) -> None:
    config = WorkerConfig(str(tiny_base), None, "w-other", EngineSettings(threads=1))
    with pytest.raises(EngineError, match="have changed"):
        worker_process._build_engine(config, Progress())


@pytest.mark.parametrize("run", ["work()", "mp.Process(target=work).start()"])
def test_a_worker_that_nobody_wants_keeps_no_process_alive(run: str, tmp_path: Path) -> None:
    code = tmp_path / "begin.py"
    code.write_text(
        "import multiprocessing as mp\n"
        "from chatbot.engine.settings import EngineSettings as S\n"
        "from chatbot.engine.workers.worker_handle import prestart_worker\n"
        "def ignores_sigterm(pid):\n"
        "    status = open(f'/proc/{pid}/status').read()\n"
        "    return int(status.split('SigIgn:')[1].split()[0], 16) >> 14 & 1\n"
        "def work():\n"
        "    pid = prestart_worker(S()).process.pid\n"
        "    while not ignores_sigterm(pid): pass\n"
        "    print(pid, flush=True)\n"
        f"if __name__ == '__main__': {run}\n"
    )
    done = subprocess.run(
        [sys.executable, str(code)],
        capture_output=True,
        timeout=30,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


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


def say(http: httpx.Client) -> int:
    return http.post("/v1/chat/completions", json=CHAT).status_code


def worker_of(server: ServerProcess) -> int:
    """Return the process id of the newest worker."""
    found = subprocess.run(
        ["ps", "-ww", "--ppid", str(server.process.pid), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=True,
    )
    pids = re.findall(r"^\s*(\d+) .*spawn_main", found.stdout, re.M)
    return int(pids[-1])


# -- A worker that stands still


STALL = EngineSettings(workers=1, threads=1, slots=16, stall_seconds=2)


@contextmanager
def stopped(process_id: int) -> Iterator[None]:
    """Stop a process as a debugger or a swapping machine would; it goes on after the block."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGCONT)


@pytest.fixture(scope="module")
def stall_engine(tiny_base: Path) -> Iterator[WorkersEngine]:
    _, engine = factory.start_engine(STALL, str(tiny_base))
    assert isinstance(engine, WorkersEngine)
    yield engine
    engine.close()


def answers(engine: WorkersEngine) -> bool:
    return engine.submit(Request(PROMPTS[0], BASE, Sampling(max_tokens=2))).wait(20)


@pytest.mark.parametrize("idle", [False, True])
def test_a_worker_that_stands_still_is_ended_with_a_reason_and_started_anew(
    stall_engine: WorkersEngine, idle: bool
) -> None:
    wait_until(lambda: stall_engine.unavailable_reason is None)
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
    wait_until(lambda: stall_engine.unavailable_reason is None)
    assert answers(stall_engine)


def test_a_worker_that_is_continued_in_time_goes_on_as_if_nothing_was(
    stall_engine: WorkersEngine,
) -> None:
    wait_until(lambda: stall_engine.unavailable_reason is None)
    worker, stream = stall_engine._workers[0], begun(stall_engine.submit(long()))
    with stopped(worker.process.pid or 0):
        wait_until(lambda: stall_engine.unavailable_reason is not None)
    tokens = len(stream.ids)
    wait_until(lambda: stall_engine.unavailable_reason is None and len(stream.ids) > tokens)
    assert stream.finish is None and stall_engine._workers == [worker]
    stream.cancel()
    assert stream.wait(10)


def test_nobody_who_sends_a_request_waits_for_a_stopped_worker(stall_engine: WorkersEngine) -> None:
    wait_until(lambda: stall_engine.unavailable_reason is None)
    request = Request([10] * 500, BASE, Sampling(max_tokens=1))
    with stopped(stall_engine._workers[0].process.pid or 0):
        streams = [stall_engine.submit(request) for _ in range(64)]  # more than the pipe holds
        assert stall_engine._workers, "all were taken before the worker was ended"
    assert all(stream.wait(20) for stream in streams)


def test_a_worker_that_hangs_while_it_loads_is_ended(tiny_base: Path) -> None:
    worker = WorkerHandle()
    with stopped(worker.process.pid or 0), pytest.raises(EngineError, match="stood still"):
        factory.start_engine(STALL, str(tiny_base), first_worker=worker)
    assert worker.process.exitcode == -signal.SIGKILL


def test_loading_an_adapter_ends_with_the_worker_that_stands_still(
    stall_engine: WorkersEngine, adapters: list[Path]
) -> None:
    wait_until(lambda: stall_engine.unavailable_reason is None)
    folder = adapters[0]
    process_id = stall_engine._workers[0].process.pid or 0
    with stopped(process_id), pytest.raises(UnreachableError, match="stood still"):
        stall_engine.load(folder.name, folder)
    wait_until(lambda: stall_engine.unavailable_reason is None)
    stall_engine.load(folder.name, folder)
    assert folder.name in stall_engine.adapters()


# -- How many, which one, and what they say


GIB = 2**30


@pytest.mark.parametrize(
    "parameters, weights, threads, device, cores, free, count",
    [
        (135_000_000, GIB // 4, 1, "cpu", 2, 8 * GIB, 2),
        (135_000_000, GIB // 4, 2, "cpu", 2, 8 * GIB, 1),
        (135_000_000, GIB // 4, 1, "cpu", 64, 64 * GIB, MAX_WORKERS),
        (135_000_000, 4 * GIB, 1, "cpu", 8, 10 * GIB, 2),
        (5_000_000, 2**20, 1, "cpu", 2, 8 * GIB, 1),
        (135_000_000, GIB // 4, 1, "cuda:0", 8, 8 * GIB, 1),
        (8_000_000_000, 16 * GIB, 16, "cpu", 16, GIB, 1),
    ],
)
def test_as_many_workers_as_cores_and_memory_bear(
    parameters: int, weights: int, threads: int, device: str, cores: int, free: int, count: int
) -> None:
    info = WorkerInfo(16, 4096, threads, device, parameters, weights)
    assert worker_count(info, cores, free) == count


@pytest.mark.parametrize("cores, count", [(1, 1), (2, 1), (4, 2), (6, 3), (64, MAX_WORKERS)])
def test_workers_that_grow_have_two_cores_each(cores: int, count: int) -> None:
    info = WorkerInfo(16, 4096, 1, "cpu", 135_000_000, GIB // 4, scales_with_cores=True)
    assert worker_count(info, cores, 64 * GIB) == count


def fake_worker(num_streams: int = 0, scales_with_cores: bool = False) -> Any:
    info = SimpleNamespace(scales_with_cores=scales_with_cores)
    return SimpleNamespace(num_streams=num_streams, info=info)


def test_a_conversation_goes_on_where_it_was_read_unless_that_worker_is_busier() -> None:
    workers = [fake_worker(1), fake_worker()]
    router, history = PrefixRouter(), list(range(4 * BLOCK_TOKENS))
    assert router.choose(Request(history), workers) is workers[1]
    workers = [fake_worker(), workers[1]]
    workers[1].num_streams = 1
    longer = Request([*history, *range(BLOCK_TOKENS)])
    assert router.choose(longer, workers) is workers[1], "who read it has only one more to serve"
    assert router.choose(Request(longer.prompt_ids, "a-1"), workers) is workers[0]
    assert (
        router.choose(Request([*history[:BLOCK_TOKENS], *[9] * 4 * BLOCK_TOKENS]), workers)
        is workers[0]
    )
    workers[1].num_streams = 5
    assert router.choose(longer, workers) is workers[0]
    assert router.choose(longer, workers[:1]) is workers[0], "and one that is gone is not asked"


def test_few_streams_are_one_workers_where_it_takes_all_cores_for_them() -> None:
    workers = [fake_worker(scales_with_cores=True) for _ in range(3)]
    router, served = PrefixRouter(), []
    for number in range(3 * SMALL_BATCH):
        chosen = router.choose(Request([number]), workers)
        served.append([worker is chosen for worker in workers].index(True))
        chosen.num_streams += 1
    assert served == [worker for worker in range(3) for _ in range(SMALL_BATCH)]
    workers[0].num_streams = SMALL_BATCH + 2
    assert router.choose(Request([0]), workers) is workers[1], "many are shared out"
    workers[2].num_streams = 1
    assert router.choose(Request([0]), workers) is workers[2], "and brought together as they end"


@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_a_stream_told_in_pieces_is_the_same_stream(every: int) -> None:
    source, copy = Stream(3), Stream(3)
    collector = UpdateCollector(source)
    for number, delta in enumerate(["", "ab", "c", "", "", "d", "e", ""]):
        source.logprobs.append(TokenLogprob(number, -1.0))
        source.append_token(number, delta)
        if number % every == 0 and (update := collector.collect()) is not None:
            apply_update(copy, update)
            assert copy.ids == source.ids, "also those that have made no text yet"
    source.append_text("f")
    assert copy.finish is None
    source.end("stop")
    if (update := collector.collect()) is not None:
        apply_update(copy, update)
    assert (copy.ids, copy.deltas, copy.token_counts) == (
        source.ids,
        source.deltas,
        source.token_counts,
    )
    assert copy.logprobs == source.logprobs and copy.finish == "stop"


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("reads", range(1, 9))
def test_tokens_that_come_while_an_update_is_collected_keep_their_text(
    reads: int, ends: bool
) -> None:
    source, copy = RacingStream(3), Stream(3)
    collector = UpdateCollector(source)

    def add(*deltas: str) -> None:
        for delta in deltas:
            source.logprobs.append(TokenLogprob(len(source.ids), -1.0))
            source.append_token(len(source.ids), delta)

    def go_on() -> None:
        add("b", "c", "")
        if ends:
            source.end("stop")

    def send() -> None:
        if copy.finish is None and (update := collector.collect()) is not None:
            apply_update(copy, update)

    add("", "a")
    source.race(reads, go_on)
    send()
    send()
    if not ends:
        add("d", "")
        source.end("stop")
    send()
    assert (copy.ids, copy.deltas) == (source.ids, source.deltas)
    assert (copy.token_counts, copy.logprobs) == (source.token_counts, source.logprobs)
    assert copy.finish == "stop"


def test_an_answer_that_ends_before_its_first_token_has_no_first_token() -> None:
    source, copy = Stream(3), Stream(3)
    source.end("error", "The engine failed.")
    update = UpdateCollector(source).collect()
    assert update is not None
    apply_update(copy, update)
    assert (copy.first_token_ms, copy.finish, copy.error) == (None, "error", source.error)
