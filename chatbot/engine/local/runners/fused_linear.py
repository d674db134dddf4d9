"""Linears of one input fused into one product."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from chatbot.engine.local.multi_lora import FusedLora, LoraLayers, LoraLinear
from chatbot.engine.local.packed_linear import PackedLinear

FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types (SmolLM is a Llama) that are made of these linears."""


def joints(index: int) -> dict[str, list[str]]:
    """The linears of a layer of the Llama family by what they read: their names in the model."""
    attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
    return {
        "qkv": [f"{attention}.{part}_proj" for part in "qkv"],
        "out": [f"{attention}.o_proj"],
        "gate_up": [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
        "down": [f"{mlp}.down_proj"],
    }


class Lent:
    """The weights of some linears as one product.

    While it lives they hold none: asked one by one, each takes its part of the product.
    """

    def __init__(
        self,
        linears: Sequence[LoraLinear],
        made: Callable[[torch.Tensor, torch.Tensor | None], Any] = PackedLinear,
    ) -> None:
        """`made` makes the product of weight and bias: a `Product`, or what has its methods."""
        self._linears = linears
        modules: list[Any] = [linear.module for linear in linears]
        self._sizes = [len(module.weight) for module in modules]
        weight, bias = joined(linears)
        self.product = made(weight, bias)
        for linear, start, end in self._spans():
            linear.module.weight.data = weight.new_empty(0)
            linear.base_forward = self._part(start, end)

    def restore_weights(self) -> None:
        """Every linear has its own weight again, one that can be trained."""
        with torch.inference_mode(False), torch.no_grad():
            weight = self.product.dense()
            for linear, start, end in self._spans():
                linear.module.weight.data = weight[start:end].clone()
                linear.base_forward = linear.original_forward

    def _spans(self) -> Iterator[tuple[LoraLinear, int, int]]:
        """Each linear, and where its outputs lie in the product."""
        start = 0
        for linear, size in zip(self._linears, self._sizes, strict=True):
            yield linear, start, start + size
            start += size

    def _part(self, start: int, end: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: self.product(x)[..., start:end].contiguous()


class Fused(FusedLora):
    """The linears `names` of `rows` as one product, adapters included."""

    def __init__(self, rows: LoraLayers, names: Sequence[str]) -> None:
        super().__init__(rows.batch, names)
        self._lent = Lent([rows.linears[name] for name in names])
        rows.register_fused(self)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in] -> [rows, out of all linears side by side]."""
        return self.add_lora(self._lent.product(x), x)

    def restore_weights(self) -> None:
        """Every linear has its own weight again."""
        self._lent.restore_weights()


def joined(linears: Sequence[LoraLinear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Their weights and biases as those of one linear; a bias is zero where a linear has none, and
    None where none has."""
    modules: list[Any] = [linear.module for linear in linears]
    weight = torch.cat([module.weight.detach() for module in modules])
    found = [(module.bias, len(module.weight)) for module in modules]
    if all(own is None for own, _ in found):
        return weight, None
    biases = [weight.new_zeros(n) if b is None else b.detach() for b, n in found]
    return weight, torch.cat(biases)


def head_weights(queries: Any, keys: Any, heads: int, kv: int) -> torch.Tensor:
    """The weights [heads + kv, head_dim] of the norms of queries and keys, head by head."""
    return torch.cat(
        (queries.weight.detach().expand(heads, -1), keys.weight.detach().expand(kv, -1))
    )
