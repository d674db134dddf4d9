"""One step of the model over the slots: parts of some prompts, or one token of every stream.

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

STEP = 32
"""Padded tokens that cost as much as one more step."""
STRIDE = 16
"""Steps read the cache up to a multiple of it: kernels are made anew for every number of positions,
which takes milliseconds and, kept, megabytes."""


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
        """Read the parts; the logits [told, vocabulary] after the last tokens of each."""
        return torch.cat([self._read(group) for group in self._groups(parts)])

    def _groups(self, parts: Sequence[Part]) -> list[list[Part]]:
        """The parts, together those of rows side by side that are worth reading in one step."""
        groups: list[list[Part]] = []
        for part in parts:
            if groups and self._joins(part, groups[-1]):
                groups[-1].append(part)
            else:
                groups.append([part])
        return groups

    def _joins(self, part: Part, group: list[Part]) -> bool:
        """Whether padding all to the longest costs less than a step of the part's own."""
        both = [*group, part]
        before, longest = (max(len(each.ids) for each in some) for some in (group, both))
        padding = longest * len(both) - before * len(group) - len(part.ids)
        room = self.cache.max_length - longest
        beside = part.row == group[-1].row + 1
        return beside and padding <= STEP and all(each.start <= room for each in both)

    def _read(self, group: list[Part]) -> torch.Tensor:
        """What is padded lies beyond a row's end: it is written over before anyone may see it."""
        longest = max(len(part.ids) for part in group)
        return self._step(
            group[0].row,
            [[*part.ids, *[0] * (longest - len(part.ids))] for part in group],
            [part.start for part in group],
            [
                (row, token)
                for row, part in enumerate(group)
                for token in range(len(part.ids) - part.told, len(part.ids))
            ],
            [part.adapter for part in group],
        )

    def decode(
        self, ids: Sequence[int], positions: Sequence[int], adapters: Sequence[str | None]
    ) -> torch.Tensor:
        """Write one token in each of the first rows; the logits [rows, vocabulary] after them."""
        last = [(row, 0) for row in range(len(ids))]
        return self._step(0, [[one] for one in ids], positions, last, adapters)

    def _step(
        self,
        first: int,
        ids: list[list[int]],
        starts: Sequence[int],
        told: Sequence[tuple[int, int]],
        adapters: Sequence[str | None],
    ) -> torch.Tensor:
        """Write ids [rows, tokens] from `starts` on, in rows from `first` on; the logits [told,
        vocabulary] after the tokens `told` by row and place among the new ones."""
        tokens = len(ids[0])
        end = max(starts) + tokens
        used = min(end + -end % STRIDE, self.cache.max_length)
        places = self._tensor(starts)[:, None] + torch.arange(tokens, device=self.like.device)
        self.rows.plan.set(adapters, self.like)
        self.cache.place(first, places, used)
        return self._run(self._tensor(ids), places, used, self._tensor(told))

    def _run(
        self, ids: torch.Tensor, positions: torch.Tensor, used: int, told: torch.Tensor
    ) -> torch.Tensor:
        """ids and positions [rows, tokens], `used` positions in the cache -> the logits [told,
        vocabulary] after the tokens `told` [told, 2], each by its row and its place in it."""
        rows, tokens = told.unbind(1)
        kept, which = torch.unique(tokens, return_inverse=True)
        out = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._mask(positions, used),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        logits: torch.Tensor = out.logits[rows, which]
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
