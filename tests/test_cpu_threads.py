"""Tests how many CPU threads an engine begins with, and how the governor changes them later."""

import os
import threading
from pathlib import Path

import pytest
import torch

from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.runners.runner import Chunk
from chatbot.engine.local.runners.transformers_runner import TransformersRunner
from chatbot.engine.local.timing import cpu_threads
from chatbot.engine.local.timing.cpu_threads import GovernorConfig, ThreadGovernor, step_kind
from chatbot.engine.protocol import BASE, EngineClosedError, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.model.base import load_base
from tests.fixtures import tiny_models

CORES = len(os.sched_getaffinity(0))
CONFIG = GovernorConfig()


@pytest.fixture
def runner(tmp_path: Path) -> TransformersRunner:
    model = load_base(str(tiny_models.write_model(tmp_path))).model
    return TransformersRunner(model, LoraLayers(model, []), SlotKVCache(1, 64))


@pytest.mark.parametrize("fewer, taken", [(1.0, 1), (1.5, 1), (2.0, 2)])
def test_as_few_threads_as_are_needed(
    runner: TransformersRunner, monkeypatch: pytest.MonkeyPatch, fewer: float, taken: int
) -> None:
    runner.parameters = 10**8
    monkeypatch.setattr(
        cpu_threads, "_measure_seconds", lambda _, count: fewer if count == 1 else 1.0
    )
    assert cpu_threads.choose_thread_count(runner, 2) == taken


def test_a_small_model_leaves_the_other_cores_to_others(
    runner: TransformersRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cpu_threads, "_measure_seconds")
    assert cpu_threads.choose_thread_count(runner, 8) == 1


def test_a_large_model_takes_all_cores_untried(
    runner: TransformersRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.parameters = 10**9
    monkeypatch.delattr(cpu_threads, "_measure_seconds")
    assert cpu_threads.choose_thread_count(runner, CORES) == CORES


def test_each_number_of_rows_has_its_step_before_anyone_waits_for_it(
    runner: TransformersRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    kind = type(runner)
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, chunks: steps.append(len(chunks)) or forward(self, chunks)
    )
    cpu_threads.warm_up(runner, 5)
    assert steps == [1, 2, 3, 4, 5] and runner.cache.bytes == 0
    monkeypatch.setattr(cpu_threads, "ENOUGH_SECONDS", 0.0)
    cpu_threads.warm_up(runner, 5)
    assert len(steps) <= 6, "a large model's steps are not worth a long start"


def test_an_engine_that_has_begun_is_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[int] = []
    monkeypatch.setattr(cpu_threads, "warm_up", lambda _, slots: warmed.append(slots))
    base = load_base(str(tiny_models.write_model(tmp_path)))
    engine = LocalEngine(base, EngineSettings(threads=1, slots=3))
    engine.wait_until_ready()
    engine.close()
    assert warmed == [3]


def test_an_engine_that_cannot_begin_says_why_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def failing(*_: object) -> None:
        asked.wait(30)
        raise MemoryError("no room for the first step")

    monkeypatch.setattr(cpu_threads, "warm_up", failing)
    base = load_base(str(tiny_models.write_model(tmp_path)))
    engine = LocalEngine(base, EngineSettings(threads=1))
    early = engine.submit(Request([5, 6, 7], BASE, Sampling(max_tokens=8)))
    asked.set()
    with pytest.raises(MemoryError, match="no room"):
        engine.wait_until_ready()
    assert early.wait(30) and early.finish == "cancelled"
    with pytest.raises(EngineClosedError):
        engine.submit(Request([5, 6, 7], BASE, Sampling(max_tokens=8)))
    engine.close()


def test_the_worker_answers_after_the_trial_as_without_it(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    texts = []
    for threads in (0, 1):
        engine = LocalEngine(
            load_base(str(tiny_models.write_model(tmp_path))), EngineSettings(threads=threads)
        )
        stream = engine.submit(Request([5, 6, 7], BASE, Sampling(max_tokens=8)))
        assert stream.wait(30)
        texts.append(stream.text)
        engine.close()
    assert texts[0] == texts[1] and torch.get_num_threads() == before


class Clock:
    """Acts as clock and model runner: a step on n threads takes `on_n` seconds."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.threads, self.seconds = 0.0, 1, seconds
        self.taken: list[int] = []

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def __call__(self) -> float:
        return self.now

    def steps(self, governor: ThreadGovernor, count: int, kind: str | None = "base") -> list[int]:
        """Take steps of one kind; return on how many threads each of them ran."""
        self.taken = []
        for _ in range(count):
            with governor.step(kind):
                self.taken.append(self.threads)
                self.now += self.seconds[f"on_{self.threads}"]
        return self.taken


def test_a_stream_alone_has_all_cores_while_it_is_faster_for_it() -> None:
    clock = Clock(on_1=3.0, on_2=2.0)
    governor = ThreadGovernor(clock, 1, 1, clock)  # type: ignore[arg-type]
    assert clock.steps(governor, 20) == [1] * 20
    governor.max_threads = 2
    assert clock.steps(governor, 200) == [2] * 200
    assert clock.steps(governor, 3, None) == [2] * 3
    governor.max_threads = 1
    assert clock.steps(governor, 3) == [1] * 3


def test_beside_other_work_it_is_few_threads_again_and_all_are_tried_more_and_more_rarely() -> None:
    clock = Clock(on_1=3.0, on_2=5.0)
    governor = ThreadGovernor(clock, 1, 2, clock)  # type: ignore[arg-type]
    assert clock.steps(governor, CONFIG.window) == [1] * CONFIG.window, "to compare with"
    first = [2] * CONFIG.window + [1] * CONFIG.first_backoff
    assert clock.steps(governor, len(first)) == first
    second = [2] * CONFIG.window + [1] * 2 * CONFIG.first_backoff
    assert clock.steps(governor, len(second)) == second
    assert clock.steps(governor, 20_000).count(2) < 25 * CONFIG.window
    clock.seconds["on_2"] = 2.0
    assert clock.steps(governor, 2 * CONFIG.max_backoff)[-1] == 2, "the other work has ended"


def test_steps_are_of_a_kind_by_their_rows_and_whether_an_adapter_speaks() -> None:
    rows = [Chunk(0, [7], 9, None), Chunk(1, [7], 30, "a-1"), Chunk(2, [7], 2, "a-2")]
    kinds = [step_kind(rows[:1]), step_kind(rows[:2]), step_kind(rows[1:2]), step_kind(rows)]
    assert len({*kinds}) == 4 and None not in kinds
    assert step_kind(rows[1:]) == step_kind(rows[:2])
    assert step_kind([*rows, Chunk(3, [7, 8], 0, None)]) is None, "a prompt is as long as it is"


def test_only_steps_of_a_kind_are_compared() -> None:
    clock = Clock(on_1=2.0, on_2=1.5)
    governor = ThreadGovernor(clock, 1, 2, clock)  # type: ignore[arg-type]
    clock.steps(governor, 20)
    clock.seconds = {"on_1": 4.0, "on_2": 3.0}
    taken = clock.steps(governor, 40, "adapter")
    assert taken == [1] * CONFIG.window + [2] * (40 - CONFIG.window)


def test_only_the_kind_that_is_slower_has_a_rest_and_a_prompt_is_as_the_last_one() -> None:
    clock = Clock(on_1=2.0, on_2=1.5)
    governor = ThreadGovernor(clock, 1, 2, clock)  # type: ignore[arg-type]
    clock.steps(governor, 40)
    clock.seconds = {"on_1": 4.0, "on_2": 5.0}
    clock.steps(governor, 2 * CONFIG.window + 2, "adapter")
    clock.seconds = {"on_1": 2.0, "on_2": 1.5}
    assert clock.steps(governor, 1, None) == [1]
    assert clock.steps(governor, 40) == [2] * 40
    assert clock.steps(governor, 1, None) == [2]


def test_after_a_good_trial_the_next_bad_one_costs_no_long_rest() -> None:
    clock = Clock(on_1=3.0, on_2=5.0)
    governor = ThreadGovernor(clock, 1, 2, clock)  # type: ignore[arg-type]
    clock.steps(governor, 20_000)
    clock.seconds["on_2"] = 2.0
    clock.steps(governor, 2 * CONFIG.max_backoff)
    clock.seconds["on_2"] = 5.0
    assert (
        clock.steps(governor, 2 * CONFIG.window + CONFIG.first_backoff)[-CONFIG.window :]
        == [2] * CONFIG.window
    )


def test_threads_that_something_beside_keeps_waiting_are_left_at_once() -> None:
    clock = Clock(on_1=0.01, on_2=0.2)
    governor = ThreadGovernor(clock, 1, 2, clock)  # type: ignore[arg-type]
    clock.steps(governor, CONFIG.window)
    assert clock.steps(governor, 20) == [2] + [1] * 19
    assert clock.steps(governor, 20, "adapter") == [1] * 20, "nor is it tried with others"
    minute = round(60 / clock.seconds["on_1"])
    assert clock.steps(governor, minute).count(2) < 10
    clock.seconds["on_2"] = 0.006
    assert clock.steps(governor, 2 * minute)[-1] == 2, "the other work has ended"
    clock.seconds["on_2"] = 0.2
    assert clock.steps(governor, round(2 * CONFIG.first_pause / 0.01)).count(2) == 2, (
        "and it is soon tried again"
    )
