"""Speeds up training on a CPU: adapters in one autograd step, short attention as bare products.

PEFT computes an adapter by some ten operations, each of which reads and writes whole activations;
torch's attention is slow in its backward pass where several heads share keys; and TRL's head scores
prompts and padding too. All compute the same numbers here, but for rounding
(``tests/bench/bench_training.py`` has what it gains).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl.trainer import utils as trl_utils

MAX_SHORT_SCORES = 1 << 25
"""Most attention scores of one layer that are held as numbers: 64 MiB in bfloat16. With more, a
batch's attention goes the way of torch, which holds none."""

_SHORT_ATTENTION = "talkback_short"


@contextmanager
def fused_layers(model: Any) -> Iterator[None]:
    """Compute PEFT's `model` by fused layers within the block, where it is on a CPU."""
    layers = [module for module in model.modules() if _can_fuse(module)]
    attention = model.config._attn_implementation
    short = model.device.type == "cpu" and attention == "sdpa"
    for layer in layers:
        layer.forward = _fused_forward(layer)
    if short:
        model.set_attn_implementation(_SHORT_ATTENTION)
    # What TRL's fused head asks to know whether it may leave out what has no label.
    leaves_out = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = leaves_out
        for layer in layers:
            del layer.forward
        if short:
            model.set_attn_implementation(attention)


def _can_fuse(module: nn.Module) -> bool:
    """Tell whether a module is an adapter as ours are, on a linear layer of a CPU's."""
    return (
        isinstance(module, LoraLinear)
        and type(module.get_base_layer()) is nn.Linear
        and module.get_base_layer().weight.device.type == "cpu"
        and not module.lora_variant
        and all(isinstance(each, nn.Identity) for each in module.lora_dropout.values())
        and not any(module.lora_bias.values())
    )


def _fused_forward(layer: Any) -> Callable[..., Any]:
    """Return what computes an adapter's layer instead of its own forward."""

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        linear, names = layer.get_base_layer(), layer.active_adapters
        if layer.disable_adapters or len(names) != 1 or layer.merged or args or kwargs:
            return type(layer).forward(layer, x, *args, **kwargs)
        weights = (
            linear.weight,
            linear.bias,
            *(each[names[0]].weight for each in (layer.lora_A, layer.lora_B)),
        )
        return _FusedLora.apply(x, *weights, layer.scaling[names[0]])  # type: ignore[no-untyped-call]

    return forward


class _FusedLora(torch.autograd.Function):
    """Computes x Wᵀ + bias + scale (x Aᵀ) Bᵀ, for a frozen weight and bias, in the weight's type.

    x is [..., in], W [out, in], A [rank, in], B [out, rank]; kept for the backward pass are x and
    the narrow x Aᵀ alone.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        ctx.adapter_dtype = a.dtype
        a, b = a.to(weight.dtype), (b * scale).to(weight.dtype)
        narrow = flat @ a.T
        out = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        out.addmm_(narrow, b.T)
        ctx.save_for_backward(flat, narrow, weight, a, b)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, narrow, weight, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        grad_narrow = grad @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_narrow, a).view(ctx.shape).to(ctx.dtype)
        grad_a = (grad_narrow.T @ flat).to(ctx.adapter_dtype)
        grad_b = (grad.T @ narrow).to(ctx.adapter_dtype).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers asks for it: query is [rows, heads, tokens, size], key and
    value have a head for each group of them, and the mask is True where a token is seen."""
    rows, heads, tokens, size = query.shape
    groups, width = key.shape[1:3]
    is_usual = kwargs.get("is_causal") is not False and not any(
        kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux", "cache")
    )
    if not is_usual or dropout or rows * heads * tokens * width > MAX_SHORT_SCORES:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return found
    stacked = query.reshape(rows, groups, heads // groups * tokens, size)
    scores = stacked @ key.transpose(-1, -2) * (size**-0.5 if scaling is None else scaling)
    if attention_mask is None:
        attention_mask = torch.ones(tokens, width, dtype=torch.bool).tril(width - tokens)
    scores = scores.view(rows, groups, -1, tokens, width)
    unseen = ~attention_mask.unsqueeze(-3)
    scores = scores.masked_fill(unseen, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype).flatten(2, 3)
    mixed = (weights @ value).view(rows, heads, tokens, value.shape[-1])
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(_SHORT_ATTENTION, _attend)
AttentionMaskInterface.register(_SHORT_ATTENTION, sdpa_mask)
