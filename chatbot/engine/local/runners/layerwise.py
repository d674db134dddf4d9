"""Computes what a model of the Llama family answers in a type of its own, a layer at a time.

In float32 that is the truth that faster ways to compute the model are measured by. It runs
transformers' own layers over copies of the weights, so that memory holds one layer more, and no
running stream notices.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from chatbot.engine.local.runners.transformers_runner import TransformersRunner
from chatbot.model.adapter import LoraMatrices

HEAD_ROWS = 4096
"""Words of the vocabulary whose logits are computed at once."""


@torch.inference_mode()
def layerwise_logits(
    reference: TransformersRunner, ids: list[int], lora: LoraMatrices | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return the logits [tokens, vocab] after each of `ids`, computed in `dtype`, without an
    adapter or with the matrices of one."""
    core: Any = reference.model.model
    config = copy.deepcopy(reference.model.config)
    config._attn_implementation = "sdpa"  # which masks what comes later by itself
    tokens = torch.tensor([ids], device=reference.like.device)
    x = functional.embedding(tokens, core.embed_tokens.weight).to(dtype)
    rotary = core.rotary_emb(x, torch.arange(len(ids), device=tokens.device)[None])
    for index in range(len(core.layers)):
        layer = _copy_layer(reference, index, config, lora or {}, dtype)
        x = layer(x, position_embeddings=rotary)
    x = copy.deepcopy(core.norm).to(dtype)(x)[0]
    head = reference.model.lm_head
    weight = head.weight.detach()
    parts = [
        functional.linear(x, weight[first : first + HEAD_ROWS].to(dtype))
        for first in range(0, len(weight), HEAD_ROWS)
    ]
    logits = torch.cat(parts, dim=1)
    return logits if head.bias is None else logits + head.bias.to(dtype)


def _copy_layer(
    reference: TransformersRunner,
    index: int,
    config: Any,
    lora: LoraMatrices,
    dtype: torch.dtype,
) -> nn.Module:
    """Return a copy of a layer in `dtype`, to whose products the adapter's are added."""
    layer: nn.Module = reference.model.model.layers[index]
    weights = {name: value.detach() for name, value in layer.named_parameters()}
    known = reference.lora_layers.linears
    names = {name: f"model.layers.{index}.{name}" for name, _ in layer.named_modules()}
    names = {name: full for name, full in names.items() if full in known}
    for name, full in names.items():  # which may have lent its weight to a runner
        weights[f"{name}.weight"] = known[full].base_weight()
    with torch.device("meta"):
        other: nn.Module = type(layer)(config, layer_idx=index).eval()
    converted = {name: value.to(dtype) for name, value in weights.items()}
    other.load_state_dict(converted, assign=True)
    for name, full in names.items():
        if full in lora:
            a, b, scale = lora[full]
            like = converted[f"{name}.weight"]
            hook = _lora_hook(a.to(like), (b * scale).to(like))
            other.get_submodule(name).register_forward_hook(hook)
    return other


def _lora_hook(a: torch.Tensor, b: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Return a hook that adds x A^T B^T to what a linear makes of x."""
    return lambda _, inputs, y: y + functional.linear(functional.linear(inputs[0], a), b)
