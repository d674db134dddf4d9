"""The angles of rotary positions, looked up: models compute them anew at every step."""

import torch
from transformers import PreTrainedModel

MOVING = frozenset({"dynamic", "longrope"})
"""Kinds of rotary positions whose angles depend on how far a step reaches."""
FIRST = 256
"""Positions of the first table; it doubles."""


class Angles:
    """cos and sin of positions as `model` itself has them, in the type and place of `like`."""

    def __init__(self, model: PreTrainedModel, like: torch.Tensor) -> None:
        self._rotary = model.model.rotary_emb
        self._like = like
        self.moving = self._rotary.rope_type in MOVING
        """Whether they are computed at every step."""
        self.tables = (like.new_empty(0), like.new_empty(0))
        """cos and sin [positions, head_dim]."""

    def __call__(self, places: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """places [tokens], all below `end` -> [tokens, head_dim] each."""
        if self.moving:
            return self._computed(places)
        if end > len(self.tables[0]):
            length = max(FIRST, 1 << (end - 1).bit_length())
            self.tables = self._computed(torch.arange(length, device=places.device))
        cos, sin = self.tables
        return cos[places], sin[places]

    def _computed(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._rotary(self._like, places[None])
        return cos[0], sin[0]
