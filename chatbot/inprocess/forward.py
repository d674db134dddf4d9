"""One step of the model over the slots: a chunk of one prompt, or one token of every stream.

This is transformers' own forward, so any causal LM works; `fast` takes its place for the
Llama family.
"""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from transformers import PreTrainedModel

from chatbot.engine import EngineError
from chatbot.inprocess.path import Part
from chatbot.inprocess.rows import Rows
from chatbot.inprocess.slots import SlotCache


def room(model: PreTrainedModel, wanted: int) -> int:
    """How many positions a stream may have: as wanted, or what the model was made for."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if other := kinds - {"full_attention", "sliding_attention"}:
        raise EngineError(
            f"{config.model_type} has {sorted(other)[0]} layers, which this engine cannot batch. "
            "Choose a base with attention layers only."
        )
    limits = [wanted, getattr(config, "max_position_embeddings", None)]
    if "sliding_attention" in kinds or getattr(config, "use_sliding_window", True):
        # Inside one window sliding attention is full attention.
        limits.append(getattr(config, "sliding_window", None))
    return min(int(limit) for limit in limits if limit)


class Forward:
    """Runs `model` with the adapters of `rows` over the rows of `cache`."""

    name = "plain"

    def __init__(self, model: PreTrainedModel, rows: Rows, cache: SlotCache) -> None:
        self.model = model
        self.rows = rows
        self.cache = cache
        self.like = next(model.parameters())
        self._additive = model.config._attn_implementation == "eager"
        self.dtype = self.like.dtype
        self.parameters = sum(parameter.numel() for parameter in model.parameters())

    @property
    def extra_bytes(self) -> int:
        """Memory beside the model's weights."""
        return 0

    def apart(self, slots: int, length: int) -> Self:
        """The same path over an empty cache of its own."""
        twin = copy.copy(self)
        twin.cache = SlotCache(slots, length)
        return twin

    def take(self, threads: int) -> None:
        """Compute on so many CPU threads from now on."""
        torch.set_num_threads(threads)

    def plain(self) -> "Forward":
        """This one is it."""
        return self

    def give_back(self) -> None:
        """Leave the model as it was; there is nothing of it in this path."""

    def prefill(self, parts: Sequence[Part]) -> torch.Tensor:
        """Read the parts, one after the other; the logits [parts, vocabulary] after each."""
        return torch.stack([self._chunk(part) for part in parts])

    def _chunk(self, part: Part) -> torch.Tensor:
        positions = torch.arange(part.start, part.end, device=self.like.device)
        self.rows.plan.set([part.adapter], self.like)
        self.cache.chunk(part.row, part.start, len(part.ids))
        return self._run(self._tensor([part.ids]), positions[None], part.end)[0]

    def decode(
        self, ids: Sequence[int], positions: Sequence[int], adapters: Sequence[str | None]
    ) -> torch.Tensor:
        """Write one token in each of the first rows; the logits [rows, vocabulary] after them."""
        places = self._tensor(positions)
        used = max(positions) + 1
        self.rows.plan.set(adapters, self.like)
        self.cache.decode(places, used)
        return self._run(self._tensor(ids)[:, None], places[:, None], used)

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, used: int) -> torch.Tensor:
        """ids and positions [rows, tokens], `used` positions in the cache -> [rows, vocabulary]."""
        out = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._mask(positions, used),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _mask(self, positions: torch.Tensor, used: int) -> torch.Tensor:
        """[rows, 1, tokens, used]: a token sees its own position and those before."""
        places = torch.arange(used, device=positions.device)
        seen = places <= positions[:, None, :, None]
        if not self._additive:
            return seen
        lowest = torch.finfo(self.like.dtype).min
        mask: torch.Tensor = self.like.new_zeros(seen.shape).masked_fill(~seen, lowest)
        return mask

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(values, device=self.like.device)
