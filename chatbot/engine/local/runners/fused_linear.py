"""Fuses the linears that read the same input into one product."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from chatbot.engine.local.multi_lora import FusedLora, LoraLayers, LoraLinear
from chatbot.engine.local.packed_linear import PackedLinear

LLAMA_FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types (SmolLM is a Llama) that are made of these linears."""


def fused_linear_names(layer: int) -> dict[str, list[str]]:
    """Return the linears of a layer of the Llama family by what they read: qkv, out, gate_up and
    down, each with their names in the model."""
    attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
    return {
        "qkv": [f"{attention}.{projection}_proj" for projection in "qkv"],
        "out": [f"{attention}.o_proj"],
        "gate_up": [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
        "down": [f"{mlp}.down_proj"],
    }


class SharedWeights:
    """Holds the weights of some linears as one product, instead of those linears.

    Until `restore_weights` the model's linears are empty, so that memory holds the weights once:
    called one by one (by the reference runner), each computes the product and takes its part.
    """

    def __init__(
        self,
        linears: Sequence[LoraLinear],
        make_product: Callable[[torch.Tensor, torch.Tensor | None], Any] = PackedLinear,
    ) -> None:
        """Take the weights; `make_product` makes a `PackedLinear`, or what has its methods, of
        weight [out, in] and bias [out]."""
        self._linears = linears
        modules: list[Any] = [linear.module for linear in linears]
        self._sizes = [len(module.weight) for module in modules]
        weight, bias = concatenate_weights(linears)
        self.product = make_product(weight, bias)
        for linear, start, end in self._output_slices():
            linear.module.weight.data = weight.new_empty(0)
            linear.base_forward = self._slice_forward(start, end)
            linear.base_weight = self._slice_weight(start, end)

    def restore_weights(self) -> None:
        """Give every linear a weight of its own again, one that can be trained."""
        with torch.inference_mode(False), torch.no_grad():
            weight = self.product.dense()
            for linear, start, end in self._output_slices():
                linear.module.weight.data = weight[start:end].clone()
                linear.base_forward = linear.original_forward
                linear.base_weight = linear.original_weight

    def _output_slices(self) -> Iterator[tuple[LoraLinear, int, int]]:
        """Yield each linear, and where its outputs begin and end in the product's."""
        start = 0
        for linear, size in zip(self._linears, self._sizes, strict=True):
            yield linear, start, start + size
            start += size

    def _slice_forward(self, start: int, end: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: self.product(x)[..., start:end].contiguous()

    def _slice_weight(self, start: int, end: int) -> Callable[[], torch.Tensor]:
        return lambda: self.product.dense()[start:end]


class FusedLinear(FusedLora):
    """Computes the linears `names` as one product, adapters included."""

    def __init__(self, lora_layers: LoraLayers, names: Sequence[str]) -> None:
        super().__init__(lora_layers.batch, names)
        self._shared_weights = SharedWeights([lora_layers.linears[name] for name in names])
        lora_layers.register_fused(self)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map [tokens, in] to [tokens, the outputs of all linears side by side]."""
        return self.add_lora(self._shared_weights.product(x), x)

    def restore_weights(self) -> None:
        """Give every linear its own weight again."""
        self._shared_weights.restore_weights()


def concatenate_weights(linears: Sequence[LoraLinear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weights [sum of out, in] and biases [sum of out] as those of one linear; a bias is
    zero where a linear has none, and None where no linear has one."""
    modules: list[Any] = [linear.module for linear in linears]
    weight = torch.cat([module.weight.detach() for module in modules])
    sized_biases = [(module.bias, len(module.weight)) for module in modules]
    if all(bias is None for bias, _ in sized_biases):
        return weight, None
    biases = [
        weight.new_zeros(size) if bias is None else bias.detach() for bias, size in sized_biases
    ]
    return weight, torch.cat(biases)


def qk_norm_weights(q_norm: Any, k_norm: Any, num_heads: int, num_kv_heads: int) -> torch.Tensor:
    """Return the weights [num_heads + num_kv_heads, head_dim] of the norms of queries and keys,
    head by head."""
    return torch.cat(
        (
            q_norm.weight.detach().expand(num_heads, -1),
            k_norm.weight.detach().expand(num_kv_heads, -1),
        )
    )
