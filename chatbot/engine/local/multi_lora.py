"""Many adapters in one forward: each row of the batch gets the LoRA of its own adapter.

The model's linears keep their names and weights; only their `forward` is led through here, and
given back by `detach`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from chatbot.engine.local.packed_linear import Product
from chatbot.engine.protocol import EngineError
from chatbot.model.lora import LoraMatrices

Pair = tuple[torch.Tensor, torch.Tensor]
"""A [rank, in] and B [out, rank] with the scale multiplied in."""
LITTLE = 600_000
"""Multiplications that are little work."""


class Plan:
    """Which adapter each token of the next forward is read with."""

    def __init__(self) -> None:
        self.adapters: tuple[str, ...] = ()
        self.mixed = False
        """Whether they differ in that."""
        self.owner = torch.empty(0)
        """[tokens, adapters]: whose each token is, if they differ in that."""
        self._masks: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def set(self, rows: Sequence[str | None], tokens: Sequence[int], like: torch.Tensor) -> None:
        """One adapter name a row, None for the base, and how many tokens each row has, one after
        the other; `like` gives the device."""
        self.adapters = tuple(sorted({name for name in rows if name is not None}))
        self.mixed = len({*rows}) > 1
        own = torch.empty(0)
        if self.mixed:
            own = torch.tensor([[row == name for name in self.adapters] for row in rows])
            own = own.repeat_interleave(torch.tensor(tokens), dim=0)
        self.belong(own.to(like.device))

    def belong(self, owner: torch.Tensor) -> None:
        """Whose the tokens are is read there from now on."""
        self.owner = owner
        self._masks.clear()

    def own(self, low: torch.Tensor) -> torch.Tensor:
        """Zero, in place, in low [.., adapters * rank] what a token got from others' adapters."""
        if not self.mixed:
            return low
        width = low.shape[-1]
        mask = self._masks.get((width, low.dtype))
        if mask is None:
            rank = width // len(self.adapters)
            mask = self.owner.to(low.dtype).repeat_interleave(rank, dim=-1)
            self._masks[width, low.dtype] = mask
        return low.view(-1, width).mul_(mask).view_as(low)


class Sides:
    """The A and B of some adapters side by side, as two products: they serve any mixture of them.

    For few tokens that is little work, and on a CPU oneDNN takes longer to begin than to do it:
    two plain products in float32 take a third of that time.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        a, b = _beside(pairs)
        self._pairs = pairs
        self._down, self._up = Product(a), Product(b)
        self._few = LITTLE // (a.numel() + b.numel()) if a.device.type == "cpu" else 0
        self._light: Pair | None = None
        """In float32 and turned, once few tokens have come."""

    @property
    def nbytes(self) -> int:
        """Memory of them in every layout."""
        return sum(each.nbytes for each in (self._down, self._up, *(self._light or ())))

    def __call__(self, x: torch.Tensor, plan: Plan) -> torch.Tensor:
        """x [.., in] -> [.., out], from its own adapter for each token."""
        if x.numel() > self._few * x.shape[-1]:
            return self._up(plan.own(self._down(x)))
        if self._light is None:
            a, b = _beside(self._pairs)
            self._light = a.float().t().contiguous(), b.float().t().contiguous()
        down, up = self._light
        return plan.own(x.float() @ down) @ up


def _beside(pairs: Sequence[Pair]) -> Pair:
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)


class LowRank:
    """What the adapters add to one product, row by row."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.pairs: dict[str, Pair] = {}
        self.sides: dict[tuple[str, ...], Sides] = {}
        """By the names of those that speak together."""

    def add(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add to y [.., out], in place, what the rows' adapters make of x [.., in]."""
        names = self.plan.adapters
        if not names:
            return y
        sides = self.sides.get(names) or self._join(names)
        return y.add_(sides(x, self.plan))

    def _join(self, names: tuple[str, ...]) -> Sides:
        """Each adapter's own are kept, and the last mixture's."""
        if len(names) > 1:
            self._forget(lambda known: len(known) > 1)
        self.sides[names] = Sides([self.pairs[name] for name in names])
        return self.sides[names]

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        self.pairs.pop(name, None)
        self._forget(lambda known: name in known)

    def _forget(self, which: Callable[[tuple[str, ...]], bool]) -> None:
        self.sides = {names: side for names, side in self.sides.items() if not which(names)}


class RowLinear(LowRank):
    """A linear module's forward with the adapters of `plan` added row by row."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(plan)
        self.module = module
        self.own: Callable[[torch.Tensor], torch.Tensor] = module.forward
        self.inner = self.own
        """What the adapters are added to."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, in] -> [rows, tokens, out]."""
        return self.add(self.inner(x), x)


class Joint(LowRank):
    """Linears that read the same input, taken as one: their outputs side by side."""

    def __init__(self, plan: Plan, names: Sequence[str]) -> None:
        super().__init__(plan)
        self.names = tuple(names)

    def join(self, pairs: dict[str, Pair]) -> Pair:
        """One adapter's pair for all of them; those in `pairs` become views of it.

        B is block-diagonal, so that two products serve all the linears.
        """
        mine = [pairs[name] for name in self.names]
        a = torch.cat([a for a, _ in mine])
        b = a.new_zeros(sum(b.shape[0] for _, b in mine), a.shape[0])
        top = left = 0
        for name, (_, part) in zip(self.names, mine, strict=True):
            bottom, right = top + part.shape[0], left + part.shape[1]
            b[top:bottom, left:right] = part
            pairs[name] = a[left:right], b[top:bottom, left:right]
            top, left = bottom, right
        return a, b


Prepared = list[tuple[LowRank, Pair]]
"""An adapter's matrices, each with the product they belong to."""


class Rows:
    """All target linears of one model, and the adapters they hold."""

    def __init__(self, model: nn.Module, targets: Sequence[str]) -> None:
        if any("forward" in vars(model.get_submodule(name)) for name in targets):
            raise EngineError("This base serves another engine. Close that one or load it again.")
        self.plan = Plan()
        self.linears = {name: RowLinear(model.get_submodule(name), self.plan) for name in targets}
        self.joints: list[Joint] = []
        for linear in self.linears.values():
            linear.module.forward = linear

    @property
    def bytes(self) -> int:
        """Memory of all adapters, in every layout they are held in."""
        own = self.joints or self.linears.values()  # pairs of joined linears are views
        pairs = [pair for holder in own for pair in list(holder.pairs.values())]
        both = (*self.joints, *self.linears.values())
        sides = [each.nbytes for holder in both for each in list(holder.sides.values())]
        return sum(a.nbytes + b.nbytes for a, b in pairs) + sum(sides)

    def prepare(self, tensors: LoraMatrices, like: torch.Tensor) -> Prepared:
        """An adapter's matrices where `like` is, and in its type; safe beside a running forward."""
        place = (like.device, like.dtype)
        pairs = {
            name: (a.to(*place), (b * scale).to(*place)) for name, (a, b, scale) in tensors.items()
        }
        joined: Prepared = [(joint, joint.join(pairs)) for joint in self.joints]
        return joined + [(self.linears[name], pair) for name, pair in pairs.items()]

    def install(self, adapter: str, prepared: Prepared) -> None:
        """Make a prepared adapter known; between two forwards only."""
        for linear, pair in prepared:
            linear.pairs[adapter] = pair
        for joint in self.joints:  # those that came after it was prepared
            if adapter not in joint.pairs:
                self._join(joint, adapter)

    def lead(self, joint: Joint) -> None:
        """From now on its linears' adapters are joined there, those that are known too."""
        for adapter in self.linears[joint.names[0]].pairs:
            self._join(joint, adapter)
        self.joints.append(joint)

    def _join(self, joint: Joint, adapter: str) -> None:
        pairs = {name: self.linears[name].pairs[adapter] for name in joint.names}
        joint.pairs[adapter] = joint.join(pairs)
        for name, pair in pairs.items():
            self.linears[name].pairs[adapter] = pair

    def drop(self, adapter: str) -> None:
        """Free an adapter; between two forwards only."""
        for linear in (*self.joints, *self.linears.values()):
            linear.drop(adapter)

    def detach(self) -> None:
        """Give the model its own forward back."""
        for linear in self.linears.values():
            del linear.module.forward
