"""Linears of one input fused into one product, with their weights held once.

On a CPU oneDNN multiplies twice as fast by a weight that it has packed beforehand.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from chatbot.rows import Joint, RowLinear, Rows


class Product:
    """x -> x W^T + b with W as the device likes it best."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._bias = bias
        self._weight = _packed(weight)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._dense = self._weight is weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[.., in] -> [.., out]."""
        if self._dense:
            return functional.linear(x, self._weight, self._bias)
        y: torch.Tensor = self._multiply(x, self._weight, self._bias, "none", [], "")
        return y

    def dense(self) -> torch.Tensor:
        """The weight [out, in], bit for bit as it came."""
        return self._weight if self._dense else self._weight.to_dense()


def _packed(weight: torch.Tensor) -> torch.Tensor:
    """The weight in oneDNN's own order; as it is where oneDNN does not serve."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return weight
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return weight
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return weight
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


class Fused(Joint):
    """The linears `names` of `rows` as one product, adapters included.

    While it lives they hold no weights: asked one by one, each takes its part of the product.
    """

    def __init__(self, rows: Rows, names: Sequence[str]) -> None:
        super().__init__(rows.plan, names)
        self._linears = [rows.linears[name] for name in names]
        modules = [linear.module for linear in self._linears]
        weight = torch.cat([module.weight.detach() for module in modules])
        self._sizes = [len(module.weight) for module in modules]
        self._product = Product(weight, _bias(modules, weight))
        for linear, start, end in self._spans():
            linear.module.weight.data = weight.new_empty(0)
            linear.inner = self._part(start, end)
        rows.joints.append(self)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in] -> [rows, out of all linears side by side]."""
        return self.add(self._product(x), x)

    def give_back(self) -> None:
        """Every linear has its own weight again, one that can be trained."""
        with torch.inference_mode(False), torch.no_grad():
            weight = self._product.dense()
            for linear, start, end in self._spans():
                linear.module.weight.data = weight[start:end].clone()
                linear.inner = linear.own

    def _spans(self) -> Iterator[tuple[RowLinear, int, int]]:
        """Each linear, and where its outputs lie in the product."""
        start = 0
        for linear, size in zip(self._linears, self._sizes, strict=True):
            yield linear, start, start + size
            start += size

    def _part(self, start: int, end: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: self._product(x)[..., start:end].contiguous()


def _bias(modules: Sequence[nn.Module], weight: torch.Tensor) -> torch.Tensor | None:
    """The biases side by side, zero where a linear has none; None where none has."""
    found = [(module.bias, len(module.weight)) for module in modules]
    if all(bias is None for bias, _ in found):
        return None
    return torch.cat([weight.new_zeros(n) if b is None else b.detach() for b, n in found])
