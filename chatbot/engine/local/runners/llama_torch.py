"""The fast path of the Llama family in torch: one step without the framework around it.

It serves on GPUs, and on CPUs that `native` has no kernels for. It takes `Forward`'s place with the
same methods, the same cache and the same adapters; `chosen` in `select_runner` decides
whether it may.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.packed_linear import PackedLinear
from chatbot.engine.local.runners import cuda_graphs
from chatbot.engine.local.runners.cuda_graphs import Layout, Recordings, Span
from chatbot.engine.local.runners.fused_linear import Fused, head_weights, joints
from chatbot.engine.local.runners.padding import Group, grouped
from chatbot.engine.local.runners.rotary import Angles
from chatbot.engine.local.runners.runner import Chunk
from chatbot.engine.local.runners.transformers_runner import TransformersRunner

MUCH = 20_000
"""Work of an attention, as `attention` counts it, that is worth products of its own; torch's own
kernel is faster at any size where the CPU has tiles (AMX)."""
PADDING = 4
"""Tokens of it that cost as much as attention of their own."""
EXACT = 16
"""Up to so many tokens a step computes no more than it has to. Beyond, it has one of 8 sizes
in each doubling: kernels are made anew for every size."""


@dataclass(frozen=True)
class Block:
    """Rows side by side in a step, with as many tokens each: what attention is of."""

    tokens: slice
    """Theirs among all tokens of the step."""
    rows: slice
    """Theirs in the cache."""
    count: int
    """Tokens of a row."""
    used: int
    """Positions that are looked at."""
    mask: torch.Tensor
    """[rows, 1, queries, used], added to the scores."""


class Step:
    """What all layers of one forward share; see `Fast.read` for the shapes."""

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor, blocks: list[Block]) -> None:
        half = cos.shape[-1] // 2
        self.cos = cos.view(-1, 1, 2 * half)
        # The half of a head that is subtracted has its sign in the sine: rotating is a roll.
        self.sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1).view_as(self.cos)
        self.blocks = blocks
        self.count = blocks[-1].tokens.stop
        """Tokens without those that only fill up the step."""


class Norm:
    """Root mean square norm with the weight of one of the model's."""

    def __init__(self, module: Any) -> None:
        self._weight = module.weight.detach()
        self._eps = float(module.variance_epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, self._weight.shape, self._weight, self._eps)


class HeadNorms:
    """Norms of queries and keys, head by head, where the model has them."""

    def __init__(self, queries: Any, keys: Any, heads: int, kv: int) -> None:
        self._weight = head_weights(queries, keys, heads, kv)
        self._eps = float(queries.variance_epsilon)

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(heads, heads.shape[-1:], None, self._eps) * self._weight


class Layer:
    """One decoder layer over its fused weights."""

    def __init__(self, model: PreTrainedModel, index: int, rows: LoraLayers) -> None:
        layer = model.model.layers[index]
        attention, mlp = layer.self_attn, layer.mlp
        self.index = index
        self.size = attention.head_dim
        self.scale = attention.scaling
        self.qkv, self.out, self.gate_up, self.down = (
            Fused(rows, names) for names in joints(index).values()
        )
        self.act = mlp.act_fn
        self.before, self.after = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.kv = attention.k_proj.out_features // self.size
        self.heads = attention.q_proj.out_features // self.size
        self.norms: HeadNorms | None = None
        if hasattr(attention, "q_norm"):
            self.norms = HeadNorms(attention.q_norm, attention.k_norm, self.heads, self.kv)

    def __call__(self, x: torch.Tensor, step: Step, cache: SlotKVCache) -> torch.Tensor:
        """[tokens, hidden] -> the same, one layer on."""
        x = x + self.out(self._attend(self.qkv(self.before(x)), step, cache))
        gate, up = self.gate_up(self.after(x)).chunk(2, dim=-1)
        return x + self.down(self.act(gate) * up)

    def _attend(self, qkv: torch.Tensor, step: Step, cache: SlotKVCache) -> torch.Tensor:
        """Queries, keys and values of the new tokens -> what they read, [tokens, ..]."""
        heads = qkv.view(len(qkv), -1, self.size)
        turned = self._turn(heads[:, : self.heads + self.kv], step)
        keys, values = cache.store(
            self.index,
            turned[: step.count, self.heads :],
            heads[: step.count, self.heads + self.kv :],
        )
        read = [self._read(turned[:, : self.heads], keys, values, block) for block in step.blocks]
        if step.count < len(qkv):
            read.append(qkv.new_zeros(len(qkv) - step.count, read[0].shape[1]))
        return read[0] if len(read) == 1 else torch.cat(read)

    def _read(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block: Block
    ) -> torch.Tensor:
        """What the tokens of a block read, [its tokens, heads * size]."""
        # Heads that share keys and values stand side by side like tokens, and nothing is repeated.
        q = q[block.tokens].view(-1, block.count, self.kv, self.heads // self.kv, self.size)
        q = q.permute(0, 2, 3, 1, 4).reshape(len(q), self.kv, -1, self.size)
        there = (block.rows, slice(None), slice(block.used))
        read = attention(q, keys[there], values[there], block.mask, self.scale)
        read = read.view(len(q), self.kv, -1, block.count, self.size).permute(0, 3, 1, 2, 4)
        return read.reshape(-1, self.heads * self.size)

    def _turn(self, heads: torch.Tensor, step: Step) -> torch.Tensor:
        """Rotary positions for queries and keys at once."""
        if self.norms is not None:
            heads = self.norms(heads)
        return torch.addcmul(heads * step.cos, heads.roll(self.size // 2, -1), step.sin)


def attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """What each of q [rows, kv, queries, size] reads in keys and values [rows, kv, used, size]."""
    rows, kv, queries, size = q.shape
    heads, used = rows * kv, keys.shape[2]
    small = heads * used * (12 + queries) < MUCH or torch.cpu._is_amx_tile_supported()
    if small or q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    # In bfloat16 on a CPU without tiles oneDNN's products take a third to two thirds of that time,
    # given matrices without gaps between them: it copies others itself, and slowly.
    keys, values = (each.contiguous().view(heads, used, size) for each in (keys, values))
    scores = torch.baddbmm(
        mask.expand(rows, kv, queries, used).reshape(heads, queries, used),
        q.reshape(heads, queries, size),
        keys.transpose(1, 2),
        alpha=scale,
    )
    return torch.bmm(scores.softmax(-1), values).view(q.shape)


class LlamaTorchRunner(TransformersRunner):
    """`Forward` for the Llama family; the model lends its weights until `give_back`."""

    name = "fast"

    def __init__(self, plain: TransformersRunner) -> None:
        super().__init__(plain.model, plain.rows, plain.cache)
        self._plain = plain
        self._additive = True
        count = len(self.model.model.layers)
        self._layers = [Layer(self.model, index, self.rows) for index in range(count)]
        self._group = self._layers[0].heads // self._layers[0].kv
        self._norm = Norm(self.model.model.norm)
        self._angles = Angles(self.model, self.like)
        head = self.model.lm_head
        self._head = PackedLinear(head.weight.detach(), head.bias)
        recorded = cuda_graphs.records(self.like) and not self._angles.moving
        self._recordings = Recordings(self.rows.batch) if recorded else None

    @property
    def extra_bytes(self) -> int:
        """Memory beside the model's weights."""
        return self._head.nbytes

    def _fused(self) -> list[Fused]:
        return [
            fused
            for layer in self._layers
            for fused in (layer.qkv, layer.out, layer.gate_up, layer.down)
        ]

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no row speaks with; between two steps only."""
        super().drop_adapter(adapter)
        if self._recordings is not None:
            self._recordings.drop_adapter(adapter)

    def with_own_cache(self, slots: int, length: int) -> Self:
        """The same path over an empty cache of its own, for a few steps."""
        twin = super().with_own_cache(slots, length)
        twin._recordings = None
        return twin

    def reference(self) -> TransformersRunner:
        """The plain path over the same cache; its linears ask the fused ones while these live."""
        return self._plain

    def restore_weights(self) -> None:
        """The model's linears have their weights again; this path is over."""
        for fused in self._fused():
            fused.restore_weights()
        self.rows.fused.clear()

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """As `Forward` has it, in one step: products are of all tokens at once, and only attention
        is block by block."""
        groups = grouped(chunks, self.cache.max_length, PADDING)
        count = sum(group.size for group in groups)
        filling = filled(count) - count
        numbers = self._numbers(groups, filling)
        self._plan(groups, filling)
        layout = self._layout(groups)
        told = self._tensor(layout.told)
        if self._recordings is None:
            return self._logits(layout, told, numbers)
        return self._recordings.step(
            layout, numbers, lambda numbers: self._logits(layout, told, numbers), self._read_by
        )

    def _layout(self, groups: list[Group]) -> Layout:
        """Of a step that is planned."""
        spans: list[Span] = []
        told: list[int] = []
        first = 0
        for group in groups:
            spans.append(Span(group.first, len(group.parts), group.tokens, self._used(group)))
            told += [first + at for at in group.told()]
            first += group.size
        plan = self.rows.batch
        return Layout(tuple(spans), tuple(told), plan.adapters, plan.mixed, self.cache.capacity)

    def _logits(self, layout: Layout, told: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """What a step says; all its launches, and nothing that depends on its numbers but these."""
        ids, positions, rows = numbers
        blocks: list[Block] = []
        count = 0
        for span in layout.spans:
            blocks.append(self._block(span, count, positions))
            count = blocks[-1].tokens.stop
        reach = max(span.used for span in layout.spans)
        self.cache.set_write_positions(rows[:count], positions[:count], blocks[-1].rows.stop, reach)
        x = self.model.model.embed_tokens(ids)
        step = Step(*self._angles(positions, reach), blocks)
        for layer in self._layers:
            x = layer(x, step, self.cache)
        return self._head(self._norm(x[told]))

    def _block(self, span: Span, first: int, positions: torch.Tensor) -> Block:
        here = slice(first, first + span.rows * span.tokens)
        mask = self._mask(positions[here].view(-1, span.tokens), span.used)
        rows = slice(span.row, span.row + span.rows)
        return Block(here, rows, span.tokens, span.used, mask.repeat(1, 1, self._group, 1))

    def _read_by(self) -> list[object]:
        """What the launches of this step read and others replace: an adapter's matrices, tables."""
        names = self.rows.batch.adapters
        return [*(fused.stacked.get(names) for fused in self._fused()), *self._angles.tables]


def filled(count: int) -> int:
    """How many tokens a step of so many computes."""
    if count <= EXACT:
        return count
    stride = 1 << count.bit_length() - 4
    return -(-count // stride) * stride
