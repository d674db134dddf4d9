"""Applies many LoRA adapters in one forward: each row of the batch gets that of its own adapter.

The model's linears keep their names and weights; only their `forward` is replaced, and `detach`
restores it. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from chatbot.engine.local.packed_linear import PackedLinear
from chatbot.engine.protocol import EngineError
from chatbot.model.adapter import LoraMatrices

LoraFactors = tuple[torch.Tensor, torch.Tensor]
"""A [rank, in], and B [out, rank] with the scale multiplied in."""

SMALL_MATMUL = 600_000
"""Up to so many multiplications, starting oneDNN costs more than it saves; see `StackedLora`."""


class LoraBatch:
    """Holds which adapter each token of the next forward is computed with."""

    def __init__(self) -> None:
        self.adapters: tuple[str, ...] = ()
        """The adapters of the forward, sorted by name."""
        self.mixed = False
        """Whether its tokens have different adapters, or some none."""
        self.token_mask = torch.empty(0)
        """[tokens, adapters], one where the token has that adapter; empty if not `mixed`."""
        self._rank_masks: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def assign(
        self, adapters: Sequence[str | None], token_counts: Sequence[int], like: torch.Tensor
    ) -> None:
        """Set the adapter of each row, None for the base, and how many tokens each row has.

        The tokens of a row follow those of the row before it; `like` gives the device.
        """
        self.adapters = tuple(sorted({name for name in adapters if name is not None}))
        self.mixed = len({*adapters}) > 1
        mask = torch.empty(0)
        if self.mixed:
            mask = torch.tensor(
                [[adapter == name for name in self.adapters] for adapter in adapters]
            )
            mask = mask.repeat_interleave(torch.tensor(token_counts), dim=0)
        self.use_mask(mask.to(like.device))

    def use_mask(self, mask: torch.Tensor) -> None:
        """Read the mask from this tensor from now on; a CUDA graph has one of its own."""
        self.token_mask = mask
        self._rank_masks.clear()

    def mask_others(self, low_rank: torch.Tensor) -> torch.Tensor:
        """Zero in place, in `low_rank` [.., adapters * rank], the ranks of other adapters."""
        if not self.mixed:
            return low_rank
        width = low_rank.shape[-1]
        mask = self._rank_masks.get((width, low_rank.dtype))
        if mask is None:
            rank = width // len(self.adapters)
            mask = self.token_mask.to(low_rank.dtype).repeat_interleave(rank, dim=-1)
            self._rank_masks[width, low_rank.dtype] = mask
        return low_rank.view(-1, width).mul_(mask).view_as(low_rank)


class StackedLora:
    """Multiplies by the A and B of several adapters side by side, for any mixture of them.

    A is [adapters * rank, in] and B is [out, adapters * rank]: two products serve all tokens, and
    between them a mask zeroes the ranks of the adapters that a token does not have.

    With few tokens that is little work, and on a CPU oneDNN takes longer to start than to do it:
    two simple products in float32 take a third of that time.
    """

    def __init__(self, adapters: Sequence[LoraFactors]) -> None:
        a, b = _stack(adapters)
        self._adapters = adapters
        self._down, self._up = PackedLinear(a), PackedLinear(b)
        self._max_small_tokens = (
            SMALL_MATMUL // (a.numel() + b.numel()) if a.device.type == "cpu" else 0
        )
        self._float32: LoraFactors | None = None
        """A and B transposed and in float32, made when few tokens come for the first time."""

    @property
    def nbytes(self) -> int:
        """Return the memory in bytes, in every layout that is held."""
        return sum(each.nbytes for each in (self._down, self._up, *(self._float32 or ())))

    def __call__(self, x: torch.Tensor, batch: LoraBatch) -> torch.Tensor:
        """Return what the adapters add, [.., out], for x [.., in] and the adapters of `batch`."""
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
    """Holds what all adapters add to one matrix product."""

    def __init__(self, batch: LoraBatch) -> None:
        self.batch = batch
        self.matrices: dict[str, LoraFactors] = {}
        self.stacked: dict[tuple[str, ...], StackedLora] = {}
        """By the names of the adapters that are used together in one forward."""

    def add_lora(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add to y [.., out], in place, what the adapters of the batch make of x [.., in]."""
        names = self.batch.adapters
        if not names:
            return y
        stacked = self.stacked.get(names) or self._stack(names)
        return y.add_(stacked(x, self.batch))

    def _stack(self, names: tuple[str, ...]) -> StackedLora:
        """Stack adapters for the first time they are used together.

        Single adapters are kept, and of mixtures the last: there are as many as there are subsets.
        """
        if len(names) > 1:
            self._evict(lambda known: len(known) > 1)
        self.stacked[names] = StackedLora([self.matrices[name] for name in names])
        return self.stacked[names]

    def drop_adapter(self, name: str) -> None:
        """Free the matrices of an adapter."""
        self.matrices.pop(name, None)
        self._evict(lambda known: name in known)

    def _evict(self, matches: Callable[[tuple[str, ...]], bool]) -> None:
        self.stacked = {names: kept for names, kept in self.stacked.items() if not matches(names)}


class LoraLinear(LoraLayer):
    """Replaces the forward of a linear module by one that adds the adapters of `batch`."""

    def __init__(self, module: nn.Module, batch: LoraBatch) -> None:
        super().__init__(batch)
        self.module = module
        self.original_forward: Callable[[torch.Tensor], torch.Tensor] = module.forward
        self.base_forward = self.original_forward
        """What the adapters are added to; a fused product may take its place."""
        self.base_weight: Callable[[], torch.Tensor] = self.original_weight
        """Returns the module's weight [out, in], wherever it is held now."""

    def original_weight(self) -> torch.Tensor:
        """Return the weight that the module itself holds."""
        return cast(torch.Tensor, self.module.weight).detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return [rows, tokens, out] for x [rows, tokens, in]."""
        return self.add_lora(self.base_forward(x), x)


class FusedLora(LoraLayer):
    """Holds the adapters of several linears of one input, computed as one linear.

    Its output is theirs side by side, as q, k and v of attention.
    """

    def __init__(self, batch: LoraBatch, names: Sequence[str]) -> None:
        super().__init__(batch)
        self.names = tuple(names)

    def fuse(self, matrices: dict[str, LoraFactors]) -> LoraFactors:
        """Return one adapter's A and B for all linears; those in `matrices` become views of them.

        A is [sum of ranks, in], B [sum of outs, sum of ranks] and block-diagonal, so that two
        products serve all the linears.
        """
        factors = [matrices[name] for name in self.names]
        a = torch.cat([a for a, _ in factors])
        b = a.new_zeros(sum(b.shape[0] for _, b in factors), a.shape[0])
        top = left = 0
        for name, (_, block) in zip(self.names, factors, strict=True):
            bottom, right = top + block.shape[0], left + block.shape[1]
            b[top:bottom, left:right] = block
            matrices[name] = a[left:right], b[top:bottom, left:right]
            top, left = bottom, right
        return a, b


PreparedAdapter = list[tuple[LoraLayer, LoraFactors]]
"""An adapter's matrices, each with the layer that they belong to."""


class LoraLayers:
    """Holds all LoRA layers of one model and the adapters that are installed in them.

    Raises EngineError if another engine has replaced the forward of its linears.
    """

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
        """Return the memory of all adapters in bytes, in every layout that is held."""
        layers = (*self.fused, *self.linears.values())
        owners = self.fused or self.linears.values()  # those of fused linears are views
        # Lists are copied, for any thread asks and the worker may install an adapter meanwhile.
        factors = [pair for layer in owners for pair in list(layer.matrices.values())]
        stacked = [each.nbytes for layer in layers for each in list(layer.stacked.values())]
        return sum(a.nbytes + b.nbytes for a, b in factors) + sum(stacked)

    def prepare(self, tensors: LoraMatrices, like: torch.Tensor) -> PreparedAdapter:
        """Return an adapter's matrices on the device and in the type of `like`.

        Nothing is changed that a forward reads, so any thread may call it at any time.
        """
        target = (like.device, like.dtype)
        matrices = {
            name: (a.to(*target), (b * scale).to(*target))
            for name, (a, b, scale) in tensors.items()
        }
        fused: PreparedAdapter = [(layer, layer.fuse(matrices)) for layer in self.fused]
        return fused + [(self.linears[name], factors) for name, factors in matrices.items()]

    def install(self, adapter: str, prepared: PreparedAdapter) -> None:
        """Install a prepared adapter; between two forwards only."""
        for layer, factors in prepared:
            layer.matrices[adapter] = factors
        for fused in self.fused:  # those that were registered after it was prepared
            if adapter not in fused.matrices:
                self._fuse(fused, adapter)

    def register_fused(self, fused: FusedLora) -> None:
        """Compute the adapters of its linears there from now on, installed ones included."""
        for adapter in self.linears[fused.names[0]].matrices:
            self._fuse(fused, adapter)
        self.fused.append(fused)

    def _fuse(self, fused: FusedLora, adapter: str) -> None:
        matrices = {name: self.linears[name].matrices[adapter] for name in fused.names}
        fused.matrices[adapter] = fused.fuse(matrices)
        for name, view in matrices.items():
            self.linears[name].matrices[adapter] = view

    def drop_adapter(self, adapter: str) -> None:
        """Free an adapter; between two forwards only."""
        for layer in (*self.fused, *self.linears.values()):
            layer.drop_adapter(adapter)

    def detach(self) -> None:
        """Restore the forward of the model's linears."""
        for linear in self.linears.values():
            del linear.module.forward
