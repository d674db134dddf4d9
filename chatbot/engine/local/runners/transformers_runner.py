"""Runs any causal LM by transformers' own forward, and is the reference that the other runners are
checked against."""

import copy
import inspect
from collections.abc import Sequence
from typing import Self

import torch
from transformers import PreTrainedModel

from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.runners.padding import PaddedBatch, pad_chunks
from chatbot.engine.local.runners.runner import Chunk

MAX_PADDING = 32
"""Tokens of padding that cost as much as one more forward."""
KV_STRIDE = 16
"""Forwards attend to a multiple of it: CPU kernels are made anew for every number of positions,
which takes milliseconds and, kept, megabytes."""
GPU_KV_STRIDE = 128
"""The same on a GPU, or a quarter of the positions if that is more: to read positions in vain costs
less than another CUDA graph."""


class TransformersRunner:
    """Runs `model` with the adapters of `lora_layers` over the rows of `cache`."""

    name = "transformers"

    def __init__(self, model: PreTrainedModel, lora_layers: LoraLayers, cache: SlotKVCache) -> None:
        self.model = model
        self.lora_layers = lora_layers
        self.cache = cache
        self.like = next(model.parameters())
        self._additive_mask = model.config._attn_implementation == "eager"
        # transformers 5.24 renames the argument, and 5.40 drops the old name.
        renamed = "cache" in inspect.signature(type(model).forward).parameters
        self._cache_argument = "cache" if renamed else "past_key_values"
        self.dtype: torch.dtype = self.like.dtype
        self.notes: list[str] = []
        """Why what was wanted, or is faster, does not serve."""
        self.parameters = sum(parameter.numel() for parameter in model.parameters())

    @property
    def cpu(self) -> bool:
        """Tell whether it computes on the CPU."""
        return str(self.like.device.type) == "cpu"

    @property
    def extra_bytes(self) -> int:
        """Return the memory that it takes beside the model's weights: none."""
        return 0

    @property
    def adapter_bytes(self) -> int:
        """Return the memory of all adapters, in every layout they are held in."""
        return self.lora_layers.nbytes

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no sequence uses; between two forwards only."""
        self.lora_layers.drop_adapter(adapter)

    def with_own_cache(self, slots: int, length: int) -> Self:
        """Return the same runner over an empty cache of its own."""
        other = copy.copy(self)
        other.cache = SlotKVCache(slots, length, self.cache.progress)
        return other

    def set_threads(self, threads: int) -> None:
        """Compute on so many CPU threads from now on."""
        torch.set_num_threads(threads)

    def reference(self) -> "TransformersRunner":
        """Return itself."""
        return self

    def restore_weights(self) -> None:
        """Leave the model as it was; this runner changes nothing of it."""

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute the chunks; return the logits [sum of num_logits, vocab] after the last tokens of
        each."""
        batches = pad_chunks(chunks, self.cache.max_length, MAX_PADDING)
        return torch.cat([self._forward_batch(batch) for batch in batches])

    def _forward_batch(self, batch: PaddedBatch) -> torch.Tensor:
        """Compute one rectangle of tokens, [rows, tokens]."""
        num_rows, num_tokens = len(batch.chunks), batch.num_tokens
        ids, positions, rows = self._inputs([batch])
        kv_length = self._kv_length(batch)
        self._assign_adapters([batch])
        self.cache.set_write_positions(rows, positions, batch.first_row + num_rows, kv_length)
        self.cache.set_read_rows(batch.first_row, num_rows, num_tokens)
        logit_rows = self._tensor([*batch.logit_rows()])
        # Transformers keeps the same columns of all rows: those that any row wants.
        columns, column_of = torch.unique(logit_rows % num_tokens, return_inverse=True)
        out = self.model(
            input_ids=ids.view(num_rows, num_tokens),
            position_ids=positions.view(num_rows, num_tokens),
            attention_mask=self._mask(positions.view(num_rows, num_tokens), kv_length),
            use_cache=True,
            logits_to_keep=columns,
            **{self._cache_argument: self.cache},
        )
        logits: torch.Tensor = out.logits[logit_rows // num_tokens, column_of]
        return logits

    def _inputs(self, batches: list[PaddedBatch], num_fill: int = 0) -> torch.Tensor:
        """Return ids, positions and cache rows [3, tokens] of all tokens, and of `num_fill` more
        that fill the forward up."""
        kinds = (PaddedBatch.ids, PaddedBatch.positions, PaddedBatch.rows)
        lists = [
            [value for batch in batches for value in kind(batch)] + [0] * num_fill for kind in kinds
        ]
        return torch.tensor(lists, device=self.like.device)

    def _assign_adapters(self, batches: list[PaddedBatch], num_fill: int = 0) -> None:
        """Tell the LoRA layers which adapter each token has."""
        adapters = [adapter for batch in batches for adapter in batch.adapters]
        token_counts = [batch.num_tokens for batch in batches for _ in batch.chunks]
        # Tokens that fill the forward up must not make a mixture of it.
        self.lora_layers.batch.assign(
            [*adapters, adapters[-1]], [*token_counts, num_fill], self.like
        )

    def _kv_length(self, batch: PaddedBatch) -> int:
        """Return how many positions of the cache a batch attends to, in strides."""
        stride = KV_STRIDE if self.cpu else max(GPU_KV_STRIDE, 1 << batch.end.bit_length() >> 3)
        return min(batch.end + -batch.end % stride, self.cache.max_length)

    def _mask(self, positions: torch.Tensor, kv_length: int) -> torch.Tensor:
        """Return the causal mask [rows, 1, tokens, kv_length] of positions [rows, tokens]: a token
        attends to its own position and to those before."""
        kv_positions = torch.arange(kv_length, device=positions.device)
        visible = kv_positions <= positions[:, None, :, None]
        if not self._additive_mask:
            return visible
        lowest = torch.finfo(self.like.dtype).min
        mask: torch.Tensor = self.like.new_zeros(visible.shape).masked_fill(~visible, lowest)
        return mask

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.like.device)
