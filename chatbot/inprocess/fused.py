"""Linears of one input fused into one product."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from chatbot.inprocess.product import Layout, Product
from chatbot.inprocess.rows import Joint, RowLinear, Rows


class Fused(Joint):
    """The linears `names` of `rows` as one product, adapters included.

    While an exact one lives they hold no weights: asked one by one, each takes its part of the
    product. Beside one in eight bits they keep theirs, to be compared with.
    """

    def __init__(self, rows: Rows, names: Sequence[str], layout: type[Layout] = Product) -> None:
        super().__init__(rows.plan, names)
        self._linears = [rows.linears[name] for name in names]
        self._sizes = [len(linear.module.weight) for linear in self._linears]  # type: ignore[arg-type]
        self.lay_out(layout)
        rows.joints.append(self)

    def lay_out(self, layout: type[Layout]) -> None:
        """Take the linears' weights into the product; they must have them."""
        modules: list[Any] = [linear.module for linear in self._linears]
        weight = torch.cat([module.weight.detach() for module in modules])
        self._product = layout(weight, _bias(modules, weight))
        self.nbytes = self._product.nbytes
        if isinstance(self._product, Product):
            for linear, start, end in self._spans():
                linear.module.weight.data = weight.new_empty(0)
                linear.inner = self._part(start, end)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in] -> [rows, out of all linears side by side]."""
        return self.add(self._product(x), x)

    def give_back(self) -> None:
        """Every linear has its own weight again, one that can be trained."""
        if not isinstance(self._product, Product):
            return
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


def _bias(modules: Sequence[Any], weight: torch.Tensor) -> torch.Tensor | None:
    """The biases side by side, zero where a linear has none; None where none has."""
    found = [(module.bias, len(module.weight)) for module in modules]
    if all(bias is None for bias, _ in found):
        return None
    return torch.cat([weight.new_zeros(n) if b is None else b.detach() for b, n in found])
