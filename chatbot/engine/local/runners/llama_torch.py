"""Runs models of the Llama family in torch: a forward without the framework around it.

It serves on GPUs, and on CPUs that `llama_cpu` has no kernels for. It has the methods, the cache
and the adapters of `TransformersRunner`; `select_runner` decides whether it may serve instead.
"""

from collections.abc import Sequence
from typing import Self

import torch

from chatbot.engine.local.packed_linear import PackedLinear
from chatbot.engine.local.runners import cuda_graphs
from chatbot.engine.local.runners.cuda_graphs import BatchShape, CudaGraphCache, ForwardShape
from chatbot.engine.local.runners.fused_linear import FusedLinear
from chatbot.engine.local.runners.llama_layer import (
    AttentionBlock,
    DecoderLayer,
    ForwardContext,
    RMSNorm,
)
from chatbot.engine.local.runners.padding import PaddedBatch, pad_chunks
from chatbot.engine.local.runners.rotary import RotaryTable
from chatbot.engine.local.runners.runner import Chunk
from chatbot.engine.local.runners.transformers_runner import TransformersRunner

MAX_PADDING = 4
"""Tokens of padding that cost as much as an attention of their own."""
MAX_EXACT_TOKENS = 16
"""Up to so many tokens a forward computes no more than it has to. Beyond, it has one of 8 sizes
in each doubling: kernels are made anew for every size."""


class LlamaTorchRunner(TransformersRunner):
    """Computes forwards of the Llama family in torch; it holds the model's weights until
    `restore_weights`."""

    name = "llama_torch"

    def __init__(self, reference: TransformersRunner) -> None:
        super().__init__(reference.model, reference.lora_layers, reference.cache)
        self._reference = reference
        self._additive_mask = True
        count = len(self.model.model.layers)
        self._layers = [DecoderLayer(self.model, index, self.lora_layers) for index in range(count)]
        self._queries_per_kv_head = self._layers[0].num_heads // self._layers[0].num_kv_heads
        self._final_norm = RMSNorm(self.model.model.norm)
        self._rotary_table = RotaryTable(self.model, self.like)
        head = self.model.lm_head
        self._lm_head = PackedLinear(head.weight.detach(), head.bias)
        self._cuda_graphs: CudaGraphCache | None = None
        if cuda_graphs.supports_graphs(self.like) and not self._rotary_table.length_dependent:
            self._cuda_graphs = CudaGraphCache(self.lora_layers.batch)

    @property
    def extra_bytes(self) -> int:
        """Return the memory that it takes beside the model's weights: its copy of the lm_head."""
        return self._lm_head.nbytes

    def _fused_linears(self) -> list[FusedLinear]:
        return [
            linear
            for layer in self._layers
            for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)
        ]

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no sequence uses; between two forwards only."""
        super().drop_adapter(adapter)
        if self._cuda_graphs is not None:
            self._cuda_graphs.drop_adapter(adapter)

    def with_own_cache(self, slots: int, length: int) -> Self:
        """Return the same runner over an empty cache of its own, for a few forwards: it captures
        none."""
        other = super().with_own_cache(slots, length)
        other._cuda_graphs = None
        return other

    def reference(self) -> TransformersRunner:
        """Return the runner through transformers; its linears take their parts of the fused ones'
        outputs while this runner holds the weights."""
        return self._reference

    def restore_weights(self) -> None:
        """Give the model's linears their weights again; this runner cannot be used any more."""
        for linear in self._fused_linears():
            linear.restore_weights()
        self.lora_layers.fused.clear()

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute the chunks; return the logits [sum of num_logits, vocab] after the last tokens of
        each. Products are of all tokens at once, and only attention is block by block."""
        batches = pad_chunks(chunks, self.cache.max_length, MAX_PADDING)
        num_tokens = sum(batch.size for batch in batches)
        num_fill = padded_size(num_tokens) - num_tokens
        inputs = self._inputs(batches, num_fill)
        self._assign_adapters(batches, num_fill)
        shape = self._shape(batches)
        logit_rows = self._tensor(shape.logit_rows)
        if self._cuda_graphs is None:
            return self._logits(shape, logit_rows, inputs)
        return self._cuda_graphs.run(
            shape,
            inputs,
            lambda inputs: self._logits(shape, logit_rows, inputs),
            self._kept_alive,
        )

    def _shape(self, batches: list[PaddedBatch]) -> ForwardShape:
        """Return the shape of a forward whose adapters are assigned."""
        shapes: list[BatchShape] = []
        logit_rows: list[int] = []
        first = 0
        for batch in batches:
            kv_length = self._kv_length(batch)
            shapes.append(
                BatchShape(batch.first_row, len(batch.chunks), batch.num_tokens, kv_length)
            )
            logit_rows += [first + index for index in batch.logit_rows()]
            first += batch.size
        lora = self.lora_layers.batch
        capacity = self.cache.capacity
        return ForwardShape(tuple(shapes), tuple(logit_rows), lora.adapters, lora.mixed, capacity)

    def _logits(
        self, shape: ForwardShape, logit_rows: torch.Tensor, inputs: torch.Tensor
    ) -> torch.Tensor:
        """Compute the logits [logit rows, vocab]. All launches of a forward are here, and nothing
        but `inputs` makes a difference between two of one shape: a graph replays them."""
        ids, positions, rows = inputs
        blocks: list[AttentionBlock] = []
        num_tokens = 0
        for batch in shape.batches:
            blocks.append(self._attention_block(batch, num_tokens, positions))
            num_tokens = blocks[-1].tokens.stop
        kv_length = max(batch.kv_length for batch in shape.batches)
        self.cache.set_write_positions(
            rows[:num_tokens], positions[:num_tokens], blocks[-1].cache_rows.stop, kv_length
        )
        x = self.model.model.embed_tokens(ids)
        context = ForwardContext(*self._rotary_table(positions, kv_length), blocks)
        for layer in self._layers:
            x = layer(x, context, self.cache)
        return self._lm_head(self._final_norm(x[logit_rows]))

    def _attention_block(
        self, batch: BatchShape, first_token: int, positions: torch.Tensor
    ) -> AttentionBlock:
        tokens = slice(first_token, first_token + batch.num_rows * batch.num_tokens)
        mask = self._mask(positions[tokens].view(-1, batch.num_tokens), batch.kv_length)
        mask = mask.repeat(1, 1, self._queries_per_kv_head, 1)
        cache_rows = slice(batch.first_row, batch.first_row + batch.num_rows)
        return AttentionBlock(tokens, cache_rows, batch.num_tokens, batch.kv_length, mask)

    def _kept_alive(self) -> list[object]:
        """Return what a graph of the current forward reads and others replace: the adapters'
        matrices and the rotary tables."""
        adapters = self.lora_layers.batch.adapters
        stacked = (linear.stacked.get(adapters) for linear in self._fused_linears())
        return [*stacked, *self._rotary_table.tables]


def padded_size(num_tokens: int) -> int:
    """Return how many tokens a forward of so many computes."""
    if num_tokens <= MAX_EXACT_TOKENS:
        return num_tokens
    stride = 1 << num_tokens.bit_length() - 4
    return -(-num_tokens // stride) * stride
