"""Recorded steps: what they say with other numbers, and what is forgotten.

On a machine with a GPU they are CUDA graphs; elsewhere what a recording promises is kept by
computing anew from the very tensors that it holds.
"""

from typing import Any

import pytest
import torch

from chatbot.engine.local.multi_lora import LoraBatch
from chatbot.engine.local.runners import cuda_graphs
from chatbot.engine.local.runners.cuda_graphs import MOST, OFTEN, Layout, Recordings, Span
from tests.fixtures.reference_model import QUESTIONS, Oracle, start_engine
from tests.fixtures.waiting import wait_for_text


class Again:
    """A recording without a GPU."""

    pool = None

    def __init__(
        self, compute: Any, numbers: torch.Tensor, plan: LoraBatch, held: object, pool: object
    ) -> None:
        self._compute, self._plan = compute, plan
        self._numbers, self._owner = numbers.clone(), plan.token_mask.clone()

    def play(self, numbers: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        self._numbers.copy_(numbers)
        self._owner.copy_(owner)
        self._plan.use_mask(self._owner)
        logits: torch.Tensor = self._compute(self._numbers)
        return logits


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Steps are recorded from now on; the numbers of those that have been played."""
    numbers: list[torch.Tensor] = []
    kind: Any = cuda_graphs.Recording if torch.cuda.is_available() else Again

    class Counted(kind):  # type: ignore[misc]
        def play(self, these: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
            numbers.append(these)
            logits: torch.Tensor = super().play(these, owner)
            return logits

    monkeypatch.setattr(cuda_graphs, "Recording", Counted)
    monkeypatch.setattr(cuda_graphs, "records", lambda _: True)
    return numbers


@pytest.mark.usefixtures("torch_only")
@pytest.mark.parametrize("lookup", [0, 8])
def test_recorded_steps_say_what_transformers_and_peft_say(
    any_oracle: Oracle, played: list[torch.Tensor], lookup: int
) -> None:
    engine = start_engine(any_oracle, prompt_lookup=lookup)
    asked = [(q, v) for q in QUESTIONS for v in any_oracle.voices]
    for together in (1, 16):
        for first in range(0, len(asked), together):
            some = asked[first : first + together]
            streams = [engine.submit(any_oracle.request(q, v, 60)) for q, v in some]
            for (question, voice), stream in zip(some, streams, strict=True):
                wait_for_text(stream)
                assert stream.ids == any_oracle.answer(question, voice, 60), (question, voice)
    assert (len(played) > 100) == engine.stats()["fast"]
    engine.close()


# -- What is kept


def layout(*adapters: str, row: int = 0, rows: int = 4) -> Layout:
    return Layout((Span(row, 1, 1, 128),), (0,), adapters, len(adapters) > 1, (rows, 256))


def steps(kept: Recordings, which: Layout, count: int) -> int:
    """So many steps of a layout; how many of them were computed, not played."""
    computed = 0

    def compute(numbers: torch.Tensor) -> torch.Tensor:
        nonlocal computed
        computed += 1
        return numbers + 1

    for number in range(count):
        numbers = torch.tensor([number])
        assert kept.step(which, numbers, compute, lambda: None) == number + 1
    return computed


class Kept:
    """A recording that computes nothing."""

    pool = None

    def __init__(self, *_: object) -> None:
        pass

    def play(self, numbers: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        return numbers + 1


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    monkeypatch.setattr(cuda_graphs, "Recording", Kept)
    return Recordings(LoraBatch())


def test_a_layout_is_recorded_when_it_has_come_often(kept: Recordings) -> None:
    assert steps(kept, layout(), OFTEN + 5) == OFTEN
    assert steps(kept, layout("a"), OFTEN - 1) == OFTEN - 1
    assert steps(kept, layout(), 2) == 0


def test_a_dropped_adapters_steps_are_forgotten(kept: Recordings) -> None:
    for each in (layout("a"), layout("b")):
        steps(kept, each, OFTEN)
    kept.drop_adapter("a")
    assert steps(kept, layout("a"), 1) == 1
    assert steps(kept, layout("b"), 1) == 0


def test_of_mixtures_the_last_ones_steps_are_kept(kept: Recordings) -> None:
    for each in (layout("a"), layout("a", "b"), layout("a", "b", row=1), layout("b", "c")):
        steps(kept, each, OFTEN)
    assert steps(kept, layout("a"), 1) == steps(kept, layout("b", "c"), 1) == 0
    assert steps(kept, layout("a", "b"), 1) == steps(kept, layout("a", "b", row=1), 1) == 1


def test_steps_over_a_cache_that_lies_elsewhere_now_are_forgotten(kept: Recordings) -> None:
    steps(kept, layout(), OFTEN)
    steps(kept, layout(row=1, rows=8), OFTEN)
    assert steps(kept, layout(), 1) == 1
    assert steps(kept, layout(row=1, rows=8), 1) == 0


def test_the_layouts_that_came_least_lately_go_first(kept: Recordings) -> None:
    for row in range(MOST):
        steps(kept, layout(row=row), OFTEN)
    assert steps(kept, layout(row=0), 1) == 0
    steps(kept, layout(row=MOST), OFTEN)
    assert steps(kept, layout(row=0), 1) == 0
    assert steps(kept, layout(row=1), 1) == 1


def test_what_cannot_be_recorded_is_computed(
    kept: Recordings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "Recording", refused)
    assert steps(kept, layout(), 2 * OFTEN) == 2 * OFTEN
    assert steps(kept, layout(row=1), 2 * OFTEN) == 2 * OFTEN
    assert caplog.text.count("not permitted") == 1
