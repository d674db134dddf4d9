"""Which runner may serve, on the real weights of SmolLM2: what computes rightly, nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbot.engine.local.kernels.library import kernel_library
from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.runners.layerwise import layerwise_logits
from chatbot.engine.local.runners.llama_cpu import LlamaCpuRunner, LlamaInt8Runner
from chatbot.engine.local.runners.llama_torch import LlamaTorchRunner
from chatbot.engine.local.runners.select_runner import (
    Truth,
    checked_runner,
    distance,
    encode_probe,
    measure_truth,
)
from chatbot.engine.local.runners.transformers_runner import TransformersRunner
from chatbot.model.adapter import verify_adapter
from chatbot.model.base import load_base
from chatbot.model.lora import target_modules
from tests.fixtures.tiny_models import write_adapter

pytestmark = pytest.mark.slow
needs_kernels = pytest.mark.skipif(kernel_library() is None, reason="no kernels on this machine")
Kind = Callable[[TransformersRunner], LlamaCpuRunner | LlamaTorchRunner]
RUNNERS = [
    pytest.param(LlamaCpuRunner, marks=needs_kernels),
    pytest.param(LlamaInt8Runner, marks=needs_kernels),
    LlamaTorchRunner,
]


@dataclass
class RealBase:
    """Holds SmolLM2 and an adapter of a clear effect, with the truth of both."""

    reference: TransformersRunner
    base: Truth
    adapter: Truth

    def accepts(
        self,
        kind: Kind,
        truth: Truth,
        spoil: Callable[[Any], object] = lambda runner: None,
    ) -> bool:
        """Tell whether a runner of a kind may serve, perhaps one that was spoilt."""
        runner = kind(self.reference)
        spoil(runner)
        chosen = checked_runner(runner, truth, self.base)
        chosen.restore_weights()
        return chosen is runner


@pytest.fixture(scope="module")
def real(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RealBase:
    base = load_base(str(real_model))
    lora = LoraLayers(base.model, list(target_modules(base.model)))
    reference = TransformersRunner(base.model, lora, SlotKVCache(2, 256))
    folder = write_adapter(tmp_path_factory.mktemp("adapters"), base, strength=0.05)
    matrices = verify_adapter(folder, base).matrices
    lora.install(folder.name, lora.prepare(matrices, reference.like))
    probe = encode_probe(base.tokenizer, reference.parameters)
    of_base = measure_truth(reference, probe)
    of_adapter = measure_truth(reference, probe, folder.name, matrices)
    assert of_base is not None and of_adapter is not None
    return RealBase(reference, of_base, of_adapter)


@pytest.mark.parametrize("kind", RUNNERS)
def test_what_computes_rightly_serves_the_base_and_an_adapter(real: RealBase, kind: Kind) -> None:
    assert real.accepts(kind, real.base)
    assert real.accepts(kind, real.adapter)


def wrong_attention_scale(runner: Any) -> None:
    runner._weights.model.attention_scale *= 0.9


def wrong_rotary_angles(runner: Any) -> None:
    table = runner._rotary_table
    table(torch.arange(8), 8)  # which fills it
    cos, sin = table.tables
    table.tables = cos.roll(1, dims=1), sin.roll(1, dims=1)


def wrong_norm(runner: Any) -> None:
    runner._weights._norm_weights[20].mul_(1.2)


def wrong_weights_of_a_layer(runner: Any) -> None:
    runner._weights._copies[60]._scales.mul_(1.2)


def no_lora_of_a_kind(runner: Any) -> None:
    for name, linear in runner.lora_layers.linears.items():
        if "down_proj" in name:
            for adapter, (a, b) in linear.matrices.items():
                linear.matrices[adapter] = (a, torch.zeros_like(b))


@needs_kernels
@pytest.mark.parametrize("spoil", [wrong_attention_scale, wrong_rotary_angles, wrong_norm])
@pytest.mark.parametrize("kind", [LlamaCpuRunner, LlamaInt8Runner])
def test_kernels_that_are_spoilt_are_refused(
    real: RealBase, kind: Kind, spoil: Callable[[Any], object]
) -> None:
    assert not real.accepts(kind, real.base, spoil)


@needs_kernels
def test_one_matrix_of_a_wrong_scale_in_eight_bits_is_refused(real: RealBase) -> None:
    assert not real.accepts(LlamaInt8Runner, real.base, wrong_weights_of_a_layer)


@needs_kernels
@pytest.mark.parametrize("kind", [LlamaCpuRunner, LlamaInt8Runner])
def test_an_adapter_of_which_a_part_is_left_out_is_refused(real: RealBase, kind: Kind) -> None:
    saved = {name: dict(each.matrices) for name, each in real.reference.lora_layers.linears.items()}
    try:
        assert not real.accepts(kind, real.adapter, no_lora_of_a_kind)
        assert real.accepts(kind, real.base, no_lora_of_a_kind)
    finally:
        for name, matrices in saved.items():
            real.reference.lora_layers.linears[name].matrices = matrices
    assert real.accepts(kind, real.adapter)


def test_the_truth_is_what_transformers_computes_in_float32(
    real: RealBase, real_model: Path
) -> None:
    base = load_base(str(real_model), dtype="float32")
    with torch.inference_mode():
        expected = base.model(torch.tensor([real.base.probe.ids])).logits[0]
    assert distance(real.base.logits, expected) < 1e-5


def test_the_truth_is_the_same_while_a_runner_holds_the_weights(real: RealBase) -> None:
    runner = LlamaTorchRunner(real.reference)
    again = layerwise_logits(real.reference, real.base.probe.ids, None, torch.float32)
    runner.restore_weights()
    assert torch.equal(again, real.base.logits)
