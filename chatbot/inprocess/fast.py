"""The fast path of the Llama family: one step of the model without the framework around it.

It takes `Forward`'s place with the same methods, the same cache and the same adapters; `chosen`
in `chatbot.inprocess.probe` decides whether it may.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from chatbot.inprocess.forward import Forward
from chatbot.inprocess.fused import Fused, joints
from chatbot.inprocess.product import Product
from chatbot.inprocess.rows import Rows
from chatbot.inprocess.slots import SlotCache

FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types (SmolLM is a Llama) whose layers are computed here."""


MUCH = 8000
"""Rows times queries times positions from which attention is worth products of its own; torch's
own kernel is faster at any size where the CPU has tiles (AMX)."""


class Step:
    """What all layers of one forward share; see `Fast._run` for the shapes."""

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> None:
        half = cos.shape[-1] // 2
        self.cos = cos.view(-1, 1, 2 * half)
        # The half of a head that is subtracted has its sign in the sine: rotating is a roll.
        self.sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1).view_as(self.cos)
        self.mask = mask


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
        weights = (queries.weight.detach().expand(heads, -1), keys.weight.detach().expand(kv, -1))
        self._weight = torch.cat(weights)
        self._eps = float(queries.variance_epsilon)

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(heads, heads.shape[-1:], None, self._eps) * self._weight


class Layer:
    """One decoder layer over its fused weights."""

    def __init__(self, model: PreTrainedModel, index: int, rows: Rows) -> None:
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

    def __call__(self, x: torch.Tensor, step: Step, cache: SlotCache) -> torch.Tensor:
        """[rows * tokens, hidden] -> the same, one layer on."""
        x = x + self.out(self._attend(self.qkv(self.before(x)), step, cache))
        gate, up = self.gate_up(self.after(x)).chunk(2, dim=-1)
        return x + self.down(self.act(gate) * up)

    def _attend(self, qkv: torch.Tensor, step: Step, cache: SlotCache) -> torch.Tensor:
        """Queries, keys and values of the new tokens -> what they read, [rows * tokens, ..]."""
        count, rows = qkv.shape[0], step.mask.shape[0]
        tokens = count // rows
        heads = qkv.view(count, -1, self.size)
        turned = self._turn(heads[:, : self.heads + self.kv], step)
        new = (rows, tokens, self.kv, self.size)
        keys, values = cache.update(
            turned[:, self.heads :].view(new).transpose(1, 2),
            heads[:, self.heads + self.kv :].view(new).transpose(1, 2),
            self.index,
        )
        # Heads that share keys and values stand side by side like tokens, and nothing is repeated.
        q = turned[:, : self.heads].view(rows, tokens, self.kv, -1, self.size)
        q = q.permute(0, 2, 3, 1, 4).reshape(rows, self.kv, -1, self.size)
        read = attention(q, keys, values, step.mask, self.scale)
        read = read.view(rows, self.kv, -1, tokens, self.size).permute(0, 3, 1, 2, 4)
        return read.reshape(count, -1)

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
    used = keys.shape[2]
    small = rows * queries * used < MUCH or torch.cpu._is_amx_tile_supported()
    if small or q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    # In bfloat16 on a CPU without tiles oneDNN's products take a third to a half of that time.
    heads = rows * kv
    scores = torch.baddbmm(
        mask.expand(rows, kv, queries, used).reshape(heads, queries, used),
        (q * scale).view(heads, queries, size),
        keys.reshape(heads, used, size).transpose(1, 2),
    )
    return torch.bmm(scores.softmax(-1), values.reshape(heads, used, size)).view_as(q)


class Fast(Forward):
    """`Forward` for the models of `FAMILY`; the model lends its weights until `give_back`."""

    name = "fast"

    def __init__(self, plain: Forward) -> None:
        super().__init__(plain.model, plain.rows, plain.cache)
        self._plain = plain
        self._additive = True
        count = len(self.model.model.layers)
        self._layers = [Layer(self.model, index, self.rows) for index in range(count)]
        self._group = self._layers[0].heads // self._layers[0].kv
        self._norm = Norm(self.model.model.norm)
        head = self.model.lm_head
        self._head = Product(head.weight.detach(), head.bias)

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

    def plain(self) -> Forward:
        """The plain path over the same cache; its linears ask the fused ones while these live."""
        return self._plain

    def give_back(self) -> None:
        """The model's linears have their weights again; this path is over."""
        for fused in self._fused():
            fused.give_back()
        self.rows.joints.clear()

    def _run(
        self, ids: torch.Tensor, positions: torch.Tensor, used: int, told: torch.Tensor
    ) -> torch.Tensor:
        """As `Forward` has it."""
        embedded = self.model.model.embed_tokens(ids)
        mask = self._mask(positions, used).repeat(1, 1, self._group, 1)
        cos, sin = self.model.model.rotary_emb(embedded, positions)
        step = Step(cos, sin, mask)
        x = embedded.flatten(0, 1)
        for layer in self._layers:
            x = layer(x, step, self.cache)
        return self._head(self._norm(x.view(embedded.shape)[told.unbind(1)]))
