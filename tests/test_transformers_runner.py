"""Chunks of several sequences in one forward: the logits are those of one by one, and they are
computed together only where it saves time."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from chatbot.engine.local import multi_lora
from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.runners.llama_torch import MAX_EXACT_TOKENS, padded_size
from chatbot.engine.local.runners.padding import pad_chunks
from chatbot.engine.local.runners.runner import Chunk
from chatbot.engine.local.runners.transformers_runner import (
    KV_STRIDE,
    MAX_PADDING,
    TransformersRunner,
)
from chatbot.model.base import load_base
from tests.fixtures import tiny_models
from tests.fixtures.reference_model import Oracle, start_engine

CACHE_ARGUMENT = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(LlamaForCausalLM.forward).parameters
)
"""The name in the transformers installed here; 5.24 has renamed it."""


@pytest.fixture(params=["kernels", "torch, as for many", "torch, as for few"])
def runner(
    any_oracle: Oracle, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TransformersRunner]:
    """Yield each family's runner over a cache of its own: by kernels, and in torch with either kind
    of LoRA products."""
    if request.param != "kernels":
        request.getfixturevalue("torch_only")
    if request.param == "torch, as for many":
        monkeypatch.setattr(multi_lora, "SMALL_MATMUL", 0)
    engine = start_engine(any_oracle)
    found = engine.scheduler.runner
    assert isinstance(found, TransformersRunner)
    with torch.inference_mode():
        yield found.with_own_cache(4, 64)
    engine.close()


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_passed_under_the_name_that_the_model_has_for_it(
    name: str, tmp_path: Path
) -> None:
    model = load_base(str(tiny_models.write_model(tmp_path))).model
    forward = type(model).forward

    def forward_cache(self: Any, cache: Any, **arguments: Any) -> Any:
        return forward(self, **{CACHE_ARGUMENT: cache}, **arguments)

    def forward_past(self: Any, past_key_values: Any, **arguments: Any) -> Any:
        return forward(self, **{CACHE_ARGUMENT: past_key_values}, **arguments)

    renamed = forward_cache if name == "cache" else forward_past
    model.__class__ = type("Renamed", (type(model),), {"forward": renamed})
    runner = TransformersRunner(model, LoraLayers(model, []), SlotKVCache(1, 16))
    assert runner.forward([Chunk(0, ids(3), 0, None)]).shape[0] == 1


def ids(count: int) -> list[int]:
    """Return so many token ids."""
    return list(range(20, 20 + count))


def test_prompts_of_all_adapters_read_together_are_as_read_apart(
    any_oracle: Oracle, runner: TransformersRunner
) -> None:
    begun = Chunk(1, ids(5), 0, any_oracle.voices[1])
    chunks = [
        Chunk(0, ids(9), 0, None),
        Chunk(1, ids(12)[5:], 5, any_oracle.voices[1]),
        Chunk(2, ids(3), 0, any_oracle.voices[2]),
    ]
    then = [
        Chunk(row, [7 + row], position, chunk.adapter)
        for row, (position, chunk) in enumerate(zip([9, 12, 3], chunks, strict=True))
    ]
    runner.forward([begun])
    separate = torch.cat([runner.forward([chunk]).clone() for chunk in chunks])
    next_separate = torch.cat([runner.forward([chunk]).clone() for chunk in then])
    other_runner = runner.with_own_cache(4, 64)
    other_runner.forward([begun])
    torch.testing.assert_close(other_runner.forward(chunks), separate, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other_runner.forward(then), next_separate, rtol=1e-4, atol=1e-4)


def test_a_prompt_is_read_in_the_step_of_those_who_speak(
    any_oracle: Oracle, runner: TransformersRunner
) -> None:
    one, other = any_oracle.voices[1], any_oracle.voices[2]
    begun = [Chunk(0, ids(9), 0, one), Chunk(1, ids(4), 0, None)]
    chunks = [
        Chunk(0, ids(3), 9, one, num_logits=3),
        Chunk(1, [7], 4, None),
        Chunk(2, ids(30), 0, other),
        Chunk(3, ids(6), 0, one),
    ]
    runner.forward(begun)
    separate = torch.cat([runner.forward([chunk]).clone() for chunk in chunks])
    other_runner = runner.with_own_cache(4, 64)
    other_runner.forward(begun)
    torch.testing.assert_close(other_runner.forward(chunks), separate, rtol=1e-4, atol=1e-4)


def test_blocks_are_of_rows_side_by_side_that_need_little_padding() -> None:
    def blocks(*chunks: Chunk) -> list[int]:
        return [len(batch.chunks) for batch in pad_chunks(chunks, 64, MAX_PADDING)]

    short, long = ids(4), ids(4 + MAX_PADDING)
    assert blocks(Chunk(0, short, 0, None), Chunk(1, long, 0, None)) == [2]
    assert blocks(Chunk(0, short, 0, None), Chunk(1, [*long, 1], 0, None)) == [1, 1]
    assert blocks(Chunk(0, short, 0, None), Chunk(2, short, 0, None)) == [1, 1]
    # What is padded must have room too.
    assert blocks(Chunk(0, short, 60, None), Chunk(1, [*short, 1], 0, None)) == [1, 1]
    assert blocks(*[Chunk(row, short, 0, None) for row in range(4)]) == [4]


def test_steps_have_few_sizes() -> None:
    exact = range(1, MAX_EXACT_TOKENS + 1)
    assert [padded_size(count) for count in exact] == list(exact)
    sizes = sorted({padded_size(count) for count in range(1, 513)})
    assert len(sizes) == MAX_EXACT_TOKENS + 8 * 5
    assert all(count <= padded_size(count) <= count * 9 / 8 for count in range(1, 513))


@pytest.mark.usefixtures("torch_only")
def test_the_cache_is_read_in_strides_up_to_its_end(
    any_oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine(any_oracle)
    runner = engine.scheduler.runner.with_own_cache(1, 2 * KV_STRIDE + 3)
    lengths: list[int] = []
    kv_length = TransformersRunner._kv_length
    monkeypatch.setattr(
        TransformersRunner,
        "_kv_length",
        lambda self, batch: lengths.append(kv_length(self, batch)) or lengths[-1],
    )
    runner.forward([Chunk(0, ids(KV_STRIDE), 0, None)])
    for position in (KV_STRIDE, KV_STRIDE + 1, 2 * KV_STRIDE - 1, 2 * KV_STRIDE, 2 * KV_STRIDE + 2):
        runner.forward([Chunk(0, [7], position, None)])
    assert lengths == [KV_STRIDE, *[2 * KV_STRIDE] * 3, *[2 * KV_STRIDE + 3] * 2]
    engine.close()
