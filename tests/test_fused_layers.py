"""Tests that layers fused for speed compute what PEFT and transformers compute, and only there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel
from trl.trainer import utils as trl_utils

from chatbot.model import lora
from chatbot.model.base import load_base
from tests.fixtures import tiny_models
from training import fused_layers as fused
from training.fused_layers import fused_layers

FAMILIES = (*tiny_models.FAMILIES, "gemma3")
IDS = torch.randint(3, 300, (3, 20), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 13:] = 0


def with_adapter(folder: Path, family: str) -> PeftModel:
    """A model of a family in float32, with an adapter of a clear effect."""
    torch.manual_seed(0)
    if family == "gemma3":  # layers that see a window of tokens only, and one head of keys
        sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}
        config = Gemma3TextConfig(vocab_size=384, sliding_window=8, **sizes, **heads)
        inner: PreTrainedModel = Gemma3ForCausalLM(config)
        tiny_models.write_tokenizer(folder)
        inner.save_pretrained(folder)
    else:
        tiny_models.write_model(folder, family)  # type: ignore[arg-type]
    base = load_base(str(folder))
    model = get_peft_model(base.model, lora.lora_config(base))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    return model


def run(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of what is no padding, and the gradient of each of the adapter's weights."""
    model.zero_grad()
    logits = model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits[MASK.bool()]
    logits.float().logsumexp(-1).square().mean().backward()
    grads = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    return logits, grads


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_layers_give_the_same_logits_and_gradients(tmp_path: Path, family: str) -> None:
    model = with_adapter(tmp_path, family)
    logits, grads = run(model)
    with fused_layers(model):
        assert model.config._attn_implementation == "talkback_short"
        found, found_grads = run(model)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    for name, grad in grads.items():
        torch.testing.assert_close(found_grads[name], grad, rtol=1e-3, atol=1e-5, msg=name)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(run(model)[0], logits), "all is as before afterwards"


def test_another_adapter_and_none_are_computed_as_peft_would(tmp_path: Path) -> None:
    model = with_adapter(tmp_path, "llama")
    model.add_adapter("ref", model.peft_config["default"])
    for name, value in model.named_parameters():
        if "lora_B.ref" in name:
            torch.nn.init.normal_(value, std=0.3)

    def all_three() -> list[Tensor]:
        found = [run(model)[0]]
        with model.disable_adapter(), torch.no_grad():
            found.append(model(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()])
        model.set_adapter("ref")
        found.append(run(model)[0])
        model.set_adapter("default")
        return found

    expected = all_three()
    with fused_layers(model):
        for found, logits in zip(all_three(), expected, strict=True):
            torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected[0], expected[2])


def test_trls_head_leaves_out_what_has_no_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = IDS.masked_fill(torch.arange(20) < 15, -100)
    model = load_base(str(tiny_models.write_model(tmp_path))).model
    trl_utils.add_fused_lm_head(model)
    apply, scored = trl_utils._ChunkedLogProbFunction.apply, []

    def counted(hidden: Tensor, *args: Any) -> Any:
        scored.append(len(hidden))
        return apply(hidden, *args)

    monkeypatch.setattr(trl_utils._ChunkedLogProbFunction, "apply", counted)
    expected = model(input_ids=IDS, labels=labels, fused_lm_head=True)
    with fused_layers(model):
        found = model(input_ids=IDS, labels=labels, fused_lm_head=True)
    model(input_ids=IDS, labels=labels, fused_lm_head=True)
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-4, atol=1e-4)
    assert scored == [3 * 19, 3 * 5, 3 * 19]


def test_long_rows_hold_no_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_adapter(tmp_path, "llama")
    calls = []
    sdpa = fused.sdpa_attention_forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(fused, "sdpa_attention_forward", counted)
    with fused_layers(model):
        run(model)
        assert not calls
        monkeypatch.setattr(fused, "MAX_SHORT_SCORES", IDS.numel() * IDS.shape[1])
        run(model)
    assert len(calls) == 2, "one for each layer"
