"""Many adapters in one forward: each row of the batch gets the LoRA of its own adapter.

The model's linears keep their names and weights; only their `forward` is led through here, and
given back by `detach`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from chatbot.engine.local.packed_linear import PackedLinear
from chatbot.engine.protocol import EngineError
from chatbot.model.adapter import LoraMatrices

LoraFactors = tuple[torch.Tensor, torch.Tensor]
"""A [rank, in] and B [out, rank] with the scale multiplied in."""
SMALL_MATMUL = 600_000
"""Multiplications that are little work."""


class LoraBatch:
    """Which adapter each token of the next forward is read with."""

    def __init__(self) -> None:
        self.adapters: tuple[str, ...] = ()
        self.mixed = False
        """Whether they differ in that."""
        self.token_mask = torch.empty(0)
        """[tokens, adapters]: whose each token is, if they differ in that."""
        self._masks: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def assign(
        self, adapters: Sequence[str | None], token_counts: Sequence[int], like: torch.Tensor
    ) -> None:
        """One adapter name a row, None for the base, and how many tokens each row has, one after
        the other; `like` gives the device."""
        self.adapters = tuple(sorted({name for name in adapters if name is not None}))
        self.mixed = len({*adapters}) > 1
        mask = torch.empty(0)
        if self.mixed:
            mask = torch.tensor([[row == name for name in self.adapters] for row in adapters])
            mask = mask.repeat_interleave(torch.tensor(token_counts), dim=0)
        self.use_mask(mask.to(like.device))

    def use_mask(self, mask: torch.Tensor) -> None:
        """Whose the tokens are is read there from now on."""
        self.token_mask = mask
        self._masks.clear()

    def mask_others(self, low_rank: torch.Tensor) -> torch.Tensor:
        """Zero, in place, in low [.., adapters * rank] what a token got from others' adapters."""
        if not self.mixed:
            return low_rank
        width = low_rank.shape[-1]
        mask = self._masks.get((width, low_rank.dtype))
        if mask is None:
            rank = width // len(self.adapters)
            mask = self.token_mask.to(low_rank.dtype).repeat_interleave(rank, dim=-1)
            self._masks[width, low_rank.dtype] = mask
        return low_rank.view(-1, width).mul_(mask).view_as(low_rank)


class StackedLora:
    """The A and B of some adapters side by side, as two products: they serve any mixture of them.

    For few tokens that is little work, and on a CPU oneDNN takes longer to begin than to do it:
    two plain products in float32 take a third of that time.
    """

    def __init__(self, adapters: Sequence[LoraFactors]) -> None:
        a, b = _stack(adapters)
        self._adapters = adapters
        self._down, self._up = PackedLinear(a), PackedLinear(b)
        self._max_small_tokens = (
            SMALL_MATMUL // (a.numel() + b.numel()) if a.device.type == "cpu" else 0
        )
        self._float32: LoraFactors | None = None
        """In float32 and turned, once few tokens have come."""

    @property
    def nbytes(self) -> int:
        """Memory of them in every layout."""
        return sum(each.nbytes for each in (self._down, self._up, *(self._float32 or ())))

    def __call__(self, x: torch.Tensor, batch: LoraBatch) -> torch.Tensor:
        """x [.., in] -> [.., out], from its own adapter for each token."""
        if x.numel() > self._max_small_tokens * x.shape[-1]:
            return self._up(batch.mask_others(self._down(x)))
        if self._float32 is None:
            a, b = _stack(self._adapters)
            self._float32 = a.float().t().contiguous(), b.float().t().contiguous()
        down, up = self._float32
        return batch.mask_others(x.float() @ down) @ up


def _stack(adapters: Sequence[LoraFactors]) -> LoraFactors:
    return torch.cat([a for a, _ in adapters]), torch.cat([b for _, b in adapters], dim=1)


class LoraLayer:
    """What the adapters add to one product, row by row."""

    def __init__(self, batch: LoraBatch) -> None:
        self.batch = batch
        self.matrices: dict[str, LoraFactors] = {}
        self.stacked: dict[tuple[str, ...], StackedLora] = {}
        """By the names of those that speak together."""

    def add_lora(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add to y [.., out], in place, what the rows' adapters make of x [.., in]."""
        names = self.batch.adapters
        if not names:
            return y
        sides = self.stacked.get(names) or self._stack(names)
        return y.add_(sides(x, self.batch))

    def _stack(self, names: tuple[str, ...]) -> StackedLora:
        """Each adapter's own are kept, and the last mixture's."""
        if len(names) > 1:
            self._forget(lambda known: len(known) > 1)
        self.stacked[names] = StackedLora([self.matrices[name] for name in names])
        return self.stacked[names]

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter."""
        self.matrices.pop(name, None)
        self._forget(lambda known: name in known)

    def _forget(self, which: Callable[[tuple[str, ...]], bool]) -> None:
        self.stacked = {names: side for names, side in self.stacked.items() if not which(names)}


class LoraLinear(LoraLayer):
    """A linear module's forward with the adapters of `plan` added row by row."""

    def __init__(self, module: nn.Module, batch: LoraBatch) -> None:
        super().__init__(batch)
        self.module = module
        self.original_forward: Callable[[torch.Tensor], torch.Tensor] = module.forward
        self.base_forward = self.original_forward
        """What the adapters are added to."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, in] -> [rows, tokens, out]."""
        return self.add_lora(self.base_forward(x), x)


class FusedLora(LoraLayer):
    """Linears that read the same input, taken as one: their outputs side by side."""

    def __init__(self, batch: LoraBatch, names: Sequence[str]) -> None:
        super().__init__(batch)
        self.names = tuple(names)

    def fuse(self, matrices: dict[str, LoraFactors]) -> LoraFactors:
        """One adapter's pair for all of them; those in `pairs` become views of it.

        B is block-diagonal, so that two products serve all the linears.
        """
        mine = [matrices[name] for name in self.names]
        a = torch.cat([a for a, _ in mine])
        b = a.new_zeros(sum(b.shape[0] for _, b in mine), a.shape[0])
        top = left = 0
        for name, (_, part) in zip(self.names, mine, strict=True):
            bottom, right = top + part.shape[0], left + part.shape[1]
            b[top:bottom, left:right] = part
            matrices[name] = a[left:right], b[top:bottom, left:right]
            top, left = bottom, right
        return a, b


PreparedAdapter = list[tuple[LoraLayer, LoraFactors]]
"""An adapter's matrices, each with the product they belong to."""


class LoraLayers:
    """All target linears of one model, and the adapters they hold."""

    def __init__(self, model: nn.Module, targets: Sequence[str]) -> None:
        if any("forward" in vars(model.get_submodule(name)) for name in targets):
            raise EngineError("This base serves another engine. Close that one or load it again.")
        self.batch = LoraBatch()
        self.linears = {name: LoraLinear(model.get_submodule(name), self.batch) for name in targets}
        self.fused: list[FusedLora] = []
        for linear in self.linears.values():
            linear.module.forward = linear

    @property
    def nbytes(self) -> int:
        """Memory of all adapters, in every layout they are held in."""
        own = self.fused or self.linears.values()  # pairs of joined linears are views
        pairs = [pair for holder in own for pair in list(holder.matrices.values())]
        both = (*self.fused, *self.linears.values())
        sides = [each.nbytes for holder in both for each in list(holder.stacked.values())]
        return sum(a.nbytes + b.nbytes for a, b in pairs) + sum(sides)

    def prepare(self, tensors: LoraMatrices, like: torch.Tensor) -> PreparedAdapter:
        """An adapter's matrices where `like` is, and in its type; safe beside a running forward."""
        place = (like.device, like.dtype)
        pairs = {
            name: (a.to(*place), (b * scale).to(*place)) for name, (a, b, scale) in tensors.items()
        }
        joined: PreparedAdapter = [(joint, joint.fuse(pairs)) for joint in self.fused]
        return joined + [(self.linears[name], pair) for name, pair in pairs.items()]

    def install(self, adapter: str, prepared: PreparedAdapter) -> None:
        """Make a prepared adapter known; between two forwards only."""
        for linear, pair in prepared:
            linear.matrices[adapter] = pair
        for joint in self.fused:  # those that came after it was prepared
            if adapter not in joint.matrices:
                self._fuse(joint, adapter)

    def register_fused(self, joint: FusedLora) -> None:
        """From now on its linears' adapters are joined there, those that are known too."""
        for adapter in self.linears[joint.names[0]].matrices:
            self._fuse(joint, adapter)
        self.fused.append(joint)

    def _fuse(self, joint: FusedLora, adapter: str) -> None:
        pairs = {name: self.linears[name].matrices[adapter] for name in joint.names}
        joint.matrices[adapter] = joint.fuse(pairs)
        for name, pair in pairs.items():
            self.linears[name].matrices[adapter] = pair

    def drop_adapter(self, adapter: str) -> None:
        """Free an adapter; between two forwards only."""
        for linear in (*self.fused, *self.linears.values()):
            linear.drop_adapter(adapter)

    def detach(self) -> None:
        """Give the model its own forward back."""
        for linear in self.linears.values():
            del linear.module.forward
