"""How many threads the engine takes where nobody says it."""

import os
from pathlib import Path

import pytest
import torch

from chatbot.base import load_base
from chatbot.engine import BASE, Request, Sampling
from chatbot.inprocess import pace
from chatbot.inprocess.batching import EngineSettings, TorchEngine
from chatbot.inprocess.forward import Forward
from chatbot.inprocess.rows import Rows
from chatbot.inprocess.slots import SlotCache
from tests import models

CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def path(tmp_path: Path) -> Forward:
    model = load_base(str(models.write_model(tmp_path))).model
    return Forward(model, Rows(model, []), SlotCache(1, 64))


@pytest.mark.parametrize("fewer, taken", [(1.0, 1), (1.1, 1), (2.0, 2)])
def test_as_few_threads_as_are_needed(
    path: Forward, monkeypatch: pytest.MonkeyPatch, fewer: float, taken: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(pace, "_seconds", lambda _, count: fewer if count == 1 else 1.0)
    assert pace.threads(path) == taken


def test_a_large_model_takes_all_cores_untried(
    path: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parameters = 10**9
    monkeypatch.delattr(pace, "_seconds")
    assert pace.threads(path) == CORES


def test_in_eight_bits_nothing_is_tried(path: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    path.name = "int8"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delattr(pace, "_seconds")
    taken = []
    for path.parameters in (8 * 10**6, 135 * 10**6, 10**9):
        taken.append(pace.threads(path))
    assert taken == [1, 2, 8]


def test_each_number_of_rows_has_its_step_before_anyone_waits_for_it(
    path: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    kind = type(path)
    read = kind.read
    monkeypatch.setattr(
        kind, "read", lambda self, parts: steps.append(len(parts)) or read(self, parts)
    )
    pace.warm(path, 5)
    assert steps == [1, 2, 3, 4, 5] and path.cache.bytes == 0
    monkeypatch.setattr(pace, "ENOUGH", 0.0)
    pace.warm(path, 5)
    assert len(steps) <= 6, "a large model's steps are not worth a long start"


def test_an_engine_that_has_begun_is_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[int] = []
    monkeypatch.setattr(pace, "warm", lambda _, slots: warmed.append(slots))
    base = load_base(str(models.write_model(tmp_path)))
    engine = TorchEngine(base, EngineSettings(threads=1, slots=3))
    engine.begun()
    engine.close()
    assert warmed == [3]


def test_the_worker_answers_after_the_trial_as_without_it(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    said = []
    for threads in (0, 1):
        engine = TorchEngine(
            load_base(str(models.write_model(tmp_path))), EngineSettings(threads=threads)
        )
        stream = engine.submit(Request([5, 6, 7], BASE, Sampling(max_tokens=8)))
        assert stream.wait(30)
        said.append(stream.text)
        engine.close()
    assert said[0] == said[1] and torch.get_num_threads() == before
