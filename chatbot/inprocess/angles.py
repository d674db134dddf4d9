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
        self._cos = self._sin = like.new_empty(0)

    def __call__(self, places: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """places [tokens], all below `end` -> [tokens, head_dim] each."""
        if self._rotary.rope_type in MOVING:
            return self._computed(places)
        if end > len(self._cos):
            length = max(FIRST, 1 << (end - 1).bit_length())
            self._cos, self._sin = self._computed(torch.arange(length, device=places.device))
        return self._cos[places], self._sin[places]

    def _computed(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._rotary(self._like, places[None])
        return cos[0], sin[0]
