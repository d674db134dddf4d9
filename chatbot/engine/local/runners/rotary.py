"""Looks up rotary position embeddings: models compute cos and sin anew at every forward."""

import torch
from transformers import PreTrainedModel

LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""Rope types whose angles depend on the longest position of a forward: no table can hold them."""
INITIAL_POSITIONS = 256
"""Positions of the first table; it doubles."""


class RotaryTable:
    """Holds cos and sin of positions as `model` itself computes them, in `like`'s type and on its
    device."""

    def __init__(self, model: PreTrainedModel, like: torch.Tensor) -> None:
        self._rotary = model.model.rotary_emb
        self._like = like
        self.length_dependent = self._rotary.rope_type in LENGTH_DEPENDENT
        """Whether they are computed at every forward."""
        self.tables = (like.new_empty(0), like.new_empty(0))
        """cos and sin [positions, head_dim]."""

    def __call__(self, positions: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin [tokens, head_dim] of positions [tokens], all below `end`."""
        if self.length_dependent:
            return self._compute(positions)
        if end > len(self.tables[0]):
            length = max(INITIAL_POSITIONS, 1 << (end - 1).bit_length())
            self.tables = self._compute(torch.arange(length, device=positions.device))
        cos, sin = self.tables
        return cos[positions], sin[positions]

    def _compute(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._rotary(self._like, positions[None])
        return cos[0], sin[0]
