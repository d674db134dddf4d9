"""One step of the model over the slots: parts of some prompts, or one token of every stream.

This is transformers' own forward, so any causal LM works; `fast` takes its place for the
Llama family.
"""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from transformers import PreTrainedModel

from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.runners.padding import Group, grouped
from chatbot.engine.local.runners.runner import Chunk

PADDING = 32
"""Tokens of it that cost as much as one more step."""
STRIDE = 16
"""Steps read the cache up to a multiple of it: kernels are made anew for every number of positions,
which takes milliseconds and, kept, megabytes."""
FAR = 128
"""The same on a GPU, or a quarter of the positions if that is more: what is read for nothing costs
less than a `Recording`."""


class TransformersRunner:
    """Runs `model` with the adapters of `rows` over the rows of `cache`."""

    name = "plain"

    def __init__(self, model: PreTrainedModel, rows: LoraLayers, cache: SlotKVCache) -> None:
        self.model = model
        self.rows = rows
        self.cache = cache
        self.like = next(model.parameters())
        self._additive = model.config._attn_implementation == "eager"
        self.dtype: torch.dtype = self.like.dtype
        self.parameters = sum(parameter.numel() for parameter in model.parameters())

    @property
    def cpu(self) -> bool:
        """Whether it computes on the CPU."""
        return str(self.like.device.type) == "cpu"

    @property
    def extra_bytes(self) -> int:
        """Memory beside the model's weights."""
        return 0

    @property
    def adapter_bytes(self) -> int:
        """Memory of all adapters, in every layout they are held in."""
        return self.rows.nbytes

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no row speaks with; between two steps only."""
        self.rows.drop_adapter(adapter)

    def with_own_cache(self, slots: int, length: int) -> Self:
        """The same path over an empty cache of its own."""
        twin = copy.copy(self)
        twin.cache = SlotKVCache(slots, length)
        return twin

    def set_threads(self, threads: int) -> None:
        """Compute on so many CPU threads from now on."""
        torch.set_num_threads(threads)

    def reference(self) -> "TransformersRunner":
        """This one is it."""
        return self

    def restore_weights(self) -> None:
        """Leave the model as it was; there is nothing of it in this path."""

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Read the parts; the logits [told, vocabulary] after the last tokens of each."""
        groups = grouped(chunks, self.cache.max_length, PADDING)
        return torch.cat([self._read(group) for group in groups])

    def _read(self, group: Group) -> torch.Tensor:
        rows, tokens = len(group.parts), group.tokens
        ids, positions, places = self._numbers([group])
        used = self._used(group)
        self._plan([group])
        self.cache.set_write_positions(places, positions, group.first + rows, used)
        self.cache.set_read_rows(group.first, rows, tokens)
        told = self._tensor([*group.told()])
        kept, which = torch.unique(told % tokens, return_inverse=True)
        out = self.model(
            input_ids=ids.view(rows, tokens),
            position_ids=positions.view(rows, tokens),
            attention_mask=self._mask(positions.view(rows, tokens), used),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        logits: torch.Tensor = out.logits[told // tokens, which]
        return logits

    def _numbers(self, groups: list[Group], filling: int = 0) -> torch.Tensor:
        """Ids, positions and cache rows of all tokens and of some that fill the step up, [3,
        tokens]."""
        kinds = (Group.ids, Group.positions, Group.rows)
        lists = [[one for group in groups for one in kind(group)] + [0] * filling for kind in kinds]
        return torch.tensor(lists, device=self.like.device)

    def _plan(self, groups: list[Group], filling: int = 0) -> None:
        """Whose tokens they are."""
        adapters = [adapter for group in groups for adapter in group.adapters]
        tokens = [group.tokens for group in groups for _ in group.parts]
        # What fills the step up makes no mixture of it.
        self.rows.batch.assign([*adapters, adapters[-1]], [*tokens, filling], self.like)

    def _used(self, group: Group) -> int:
        """Positions that a group's rows have in the cache, in strides."""
        stride = STRIDE if self.cpu else max(FAR, 1 << group.end.bit_length() >> 3)
        return min(group.end + -group.end % stride, self.cache.max_length)

    def _mask(self, positions: torch.Tensor, used: int) -> torch.Tensor:
        """[rows, 1, tokens, used]: a token sees its own position and those before."""
        places = torch.arange(used, device=positions.device)
        seen = places <= positions[:, None, :, None]
        if not self._additive:
            return seen
        lowest = torch.finfo(self.like.dtype).min
        mask: torch.Tensor = self.like.new_zeros(seen.shape).masked_fill(~seen, lowest)
        return mask

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.like.device)
