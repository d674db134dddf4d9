"""Many adapters in one forward: each row of the batch gets the LoRA of its own adapter.

The model's linears keep their names and weights; only their `forward` is led through here, and
given back by `detach`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from chatbot.lora import Tensors

Pair = tuple[torch.Tensor, torch.Tensor]
"""A [rank, in] and B [out, rank] with the scale multiplied in."""


class Plan:
    """Which adapter each row of the next forward speaks with."""

    def __init__(self) -> None:
        self.adapters: tuple[str, ...] = ()
        self.owner: torch.Tensor | None = None
        """[rows, 1, adapters]: 1 where the row speaks with that adapter; None: all with the one."""

    def set(self, rows: Sequence[str | None], like: torch.Tensor) -> None:
        """One adapter name a row, None for the base; `like` gives dtype and device."""
        names = tuple(sorted({name for name in rows if name is not None}))
        self.adapters, self.owner = names, None
        if len({*rows}) > 1:
            self.owner = like.new_tensor([[[row == name for name in names]] for row in rows])


class RowLinear:
    """A linear module's forward with the adapters of `plan` added row by row."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.module = module
        self.plan = plan
        self.pairs: dict[str, Pair] = {}
        self._joined: tuple[tuple[str, ...], Pair] | None = None
        self._inner = module.forward

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, in] -> [rows, tokens, out]."""
        y: torch.Tensor = self._inner(x)
        plan = self.plan
        if not plan.adapters:
            return y
        a, b = self._pair(plan.adapters)
        low = functional.linear(x, a)
        if plan.owner is not None:
            low = self._own(low, plan.owner)
        return y.view(-1, y.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.t()).view_as(y)

    @staticmethod
    def _own(low: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        """Zero what a row got from adapters that are not its own."""
        apart = low.view(*low.shape[:-1], owner.shape[-1], -1)
        return (apart * owner.unsqueeze(-1)).flatten(-2)

    def _pair(self, names: tuple[str, ...]) -> Pair:
        """The adapters' matrices side by side: two dense products serve any mixture of them."""
        if len(names) == 1:
            return self.pairs[names[0]]
        if self._joined is None or self._joined[0] != names:
            pairs = [self.pairs[name] for name in names]
            joined = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)
            self._joined = names, joined
        return self._joined[1]

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        self.pairs.pop(name, None)
        if self._joined is not None and name in self._joined[0]:
            self._joined = None


class Rows:
    """All target linears of one model, and the adapters they hold."""

    def __init__(self, model: nn.Module, targets: Sequence[str]) -> None:
        self.plan = Plan()
        self.linears = {name: RowLinear(model.get_submodule(name), self.plan) for name in targets}
        for linear in self.linears.values():
            linear.module.forward = linear

    def prepare(self, tensors: Tensors, like: torch.Tensor) -> dict[str, Pair]:
        """An adapter's matrices in the model's dtype and place; safe beside a running forward."""
        return {name: (a.to(like), (b * scale).to(like)) for name, (a, b, scale) in tensors.items()}

    def install(self, adapter: str, pairs: Mapping[str, Pair]) -> None:
        """Make a prepared adapter known; between two forwards only."""
        for name, pair in pairs.items():
            self.linears[name].pairs[adapter] = pair

    def drop(self, adapter: str) -> None:
        """Free an adapter; between two forwards only."""
        for linear in self.linears.values():
            linear.drop(adapter)

    def detach(self) -> None:
        """Give the model its own forward back."""
        for linear in self.linears.values():
            del linear.module.forward
