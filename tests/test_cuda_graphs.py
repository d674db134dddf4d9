"""Captured forwards: what they compute from other inputs, and which are forgotten.

On a machine with a GPU they are CUDA graphs; elsewhere what a graph promises is kept by computing
anew from the very tensors that it holds.
"""

from typing import Any

import pytest
import torch

from chatbot.engine.local.multi_lora import LoraBatch
from chatbot.engine.local.runners import cuda_graphs
from chatbot.engine.local.runners.cuda_graphs import (
    CAPTURE_AFTER,
    MAX_GRAPHS,
    BatchShape,
    CudaGraphCache,
    ForwardShape,
)
from tests.fixtures.reference_model import QUESTIONS, Oracle, start_engine
from tests.fixtures.waiting import wait_for_text


class RecomputedGraph:
    """Stands in for a graph where there is no GPU."""

    pool = None

    def __init__(
        self,
        compute: Any,
        inputs: torch.Tensor,
        lora_batch: LoraBatch,
        kept_alive: object,
        pool: object,
    ) -> None:
        self._compute, self._lora_batch = compute, lora_batch
        self._inputs, self._token_mask = inputs.clone(), lora_batch.token_mask.clone()

    def replay(self, inputs: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        self._inputs.copy_(inputs)
        self._token_mask.copy_(token_mask)
        self._lora_batch.use_mask(self._token_mask)
        logits: torch.Tensor = self._compute(self._inputs)
        return logits


@pytest.fixture
def replayed_inputs(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Capture forwards from now on; return the inputs of those that were replayed."""
    replayed: list[torch.Tensor] = []
    kind: Any = cuda_graphs.CudaGraph if torch.cuda.is_available() else RecomputedGraph

    class Counted(kind):  # type: ignore[misc]
        def replay(self, inputs: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
            replayed.append(inputs)
            logits: torch.Tensor = super().replay(inputs, token_mask)
            return logits

    monkeypatch.setattr(cuda_graphs, "CudaGraph", Counted)
    monkeypatch.setattr(cuda_graphs, "supports_graphs", lambda _: True)
    return replayed


@pytest.mark.slow
@pytest.mark.usefixtures("torch_only")
def test_captured_forwards_say_what_transformers_and_peft_say(
    oracle: Oracle, replayed_inputs: list[torch.Tensor]
) -> None:
    compare_captured_forwards(oracle, replayed_inputs, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("torch_only")
@pytest.mark.parametrize("lookup", [0, 8])
def test_captured_forwards_of_every_family_say_so_too_and_with_drafts(
    any_oracle: Oracle, replayed_inputs: list[torch.Tensor], lookup: int
) -> None:
    compare_captured_forwards(any_oracle, replayed_inputs, lookup)


def compare_captured_forwards(
    oracle: Oracle, replayed_inputs: list[torch.Tensor], lookup: int
) -> None:
    """Check an engine's answers, of one stream alone and of 16, against the oracle's."""
    engine = start_engine(oracle, prompt_lookup=lookup)
    asked = [(q, v) for q in QUESTIONS for v in oracle.voices]
    for together in (1, 16):
        for first in range(0, len(asked), together):
            some = asked[first : first + together]
            streams = [engine.submit(oracle.request(q, v, 60)) for q, v in some]
            for (question, voice), stream in zip(some, streams, strict=True):
                wait_for_text(stream)
                assert stream.ids == oracle.answer(question, voice, 60), (question, voice)
    assert (len(replayed_inputs) > 100) == engine.stats()["fast"]
    engine.close()


# -- What is kept


def shape(*adapters: str, row: int = 0, rows: int = 4) -> ForwardShape:
    """Return the shape of one token in a row of a cache of so many rows."""
    return ForwardShape(
        (BatchShape(row, 1, 1, 128),), (0,), adapters, len(adapters) > 1, (rows, 256)
    )


def run(graphs: CudaGraphCache, shape: ForwardShape, count: int) -> int:
    """Run so many forwards of a shape; return how many were computed, not replayed."""
    computed = 0

    def compute(inputs: torch.Tensor) -> torch.Tensor:
        nonlocal computed
        computed += 1
        return inputs + 1

    for number in range(count):
        inputs = torch.tensor([number])
        assert graphs.run(shape, inputs, compute, lambda: None) == number + 1
    return computed


class EmptyGraph:
    """Stands in for a graph that computes nothing."""

    pool = None

    def __init__(self, *_: object) -> None:
        pass

    def replay(self, inputs: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        return inputs + 1


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CudaGraphCache:
    """Return a cache of graphs that compute nothing."""
    monkeypatch.setattr(cuda_graphs, "CudaGraph", EmptyGraph)
    return CudaGraphCache(LoraBatch())


def test_a_shape_is_captured_when_it_has_come_often(graphs: CudaGraphCache) -> None:
    assert run(graphs, shape(), CAPTURE_AFTER + 5) == CAPTURE_AFTER
    assert run(graphs, shape("a"), CAPTURE_AFTER - 1) == CAPTURE_AFTER - 1
    assert run(graphs, shape(), 2) == 0


def test_a_dropped_adapters_graphs_are_forgotten(graphs: CudaGraphCache) -> None:
    for each in (shape("a"), shape("b")):
        run(graphs, each, CAPTURE_AFTER)
    graphs.drop_adapter("a")
    assert run(graphs, shape("a"), 1) == 1
    assert run(graphs, shape("b"), 1) == 0


def test_of_mixtures_the_last_ones_graphs_are_kept(graphs: CudaGraphCache) -> None:
    for each in (shape("a"), shape("a", "b"), shape("a", "b", row=1), shape("b", "c")):
        run(graphs, each, CAPTURE_AFTER)
    assert run(graphs, shape("a"), 1) == run(graphs, shape("b", "c"), 1) == 0
    assert run(graphs, shape("a", "b"), 1) == run(graphs, shape("a", "b", row=1), 1) == 1


def test_graphs_over_a_cache_that_lies_elsewhere_now_are_forgotten(graphs: CudaGraphCache) -> None:
    run(graphs, shape(), CAPTURE_AFTER)
    run(graphs, shape(row=1, rows=8), CAPTURE_AFTER)
    assert run(graphs, shape(), 1) == 1
    assert run(graphs, shape(row=1, rows=8), 1) == 0


def test_the_least_recently_used_graphs_go_first(graphs: CudaGraphCache) -> None:
    for row in range(MAX_GRAPHS):
        run(graphs, shape(row=row), CAPTURE_AFTER)
    assert run(graphs, shape(row=0), 1) == 0
    run(graphs, shape(row=MAX_GRAPHS), CAPTURE_AFTER)
    assert run(graphs, shape(row=0), 1) == 0
    assert run(graphs, shape(row=1), 1) == 1


def test_what_cannot_be_captured_is_computed(
    graphs: CudaGraphCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "CudaGraph", refused)
    assert run(graphs, shape(), 2 * CAPTURE_AFTER) == 2 * CAPTURE_AFTER
    assert run(graphs, shape(row=1), 2 * CAPTURE_AFTER) == 2 * CAPTURE_AFTER
    assert caplog.text.count("not permitted") == 1
