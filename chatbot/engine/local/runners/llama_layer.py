"""Computes a decoder layer of the Llama family in torch, over fused weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.runners.fused_linear import (
    FusedLinear,
    fused_linear_names,
    qk_norm_weights,
)

MIN_BMM_WORK = 20_000
"""Work of an attention, as `attention` counts it, from which batched products are faster than
torch's own kernel; that one is faster at any size where the CPU has tiles (AMX)."""


@dataclass(frozen=True)
class AttentionBlock:
    """Describes rows side by side in a forward, with as many tokens each, which attention computes
    at once."""

    tokens: slice
    """Theirs among all tokens of the forward."""
    cache_rows: slice
    num_tokens: int
    """Of each row."""
    kv_length: int
    """Positions of the cache that they attend to."""
    mask: torch.Tensor
    """[rows, 1, queries, kv_length], added to the scores."""


class ForwardContext:
    """Holds what all layers of one forward share."""

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor, blocks: list[AttentionBlock]) -> None:
        """Take cos and sin [tokens, head_dim] of the tokens' positions."""
        half = cos.shape[-1] // 2
        self.cos = cos.view(-1, 1, 2 * half)
        # The half of a head that is subtracted has its sign in the sine: rotating is a roll.
        self.sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1).view_as(self.cos)
        self.blocks = blocks
        self.num_tokens = blocks[-1].tokens.stop
        """Without those that only fill the forward up."""


class RMSNorm:
    """Computes a root mean square norm with the weight of one of the model's."""

    def __init__(self, module: Any) -> None:
        self._weight = module.weight.detach()
        self._eps = float(module.variance_epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x [.., hidden]."""
        return functional.rms_norm(x, self._weight.shape, self._weight, self._eps)


class QKNorm:
    """Computes the norms of queries and keys, head by head, where the model has them (Qwen3)."""

    def __init__(self, q_norm: Any, k_norm: Any, num_heads: int, num_kv_heads: int) -> None:
        self._weight = qk_norm_weights(q_norm, k_norm, num_heads, num_kv_heads)
        self._eps = float(q_norm.variance_epsilon)

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        """Normalize heads [tokens, num_heads + num_kv_heads, head_dim]."""
        return functional.rms_norm(heads, heads.shape[-1:], None, self._eps) * self._weight


class DecoderLayer:
    """Computes one decoder layer over its fused weights."""

    def __init__(self, model: PreTrainedModel, index: int, lora_layers: LoraLayers) -> None:
        layer = model.model.layers[index]
        attention, mlp = layer.self_attn, layer.mlp
        self.index = index
        self.head_dim = attention.head_dim
        self.attention_scale = attention.scaling
        self.qkv, self.out, self.gate_up, self.down = (
            FusedLinear(lora_layers, names) for names in fused_linear_names(index).values()
        )
        self.activation = mlp.act_fn
        self.input_norm = RMSNorm(layer.input_layernorm)
        self.post_attention_norm = RMSNorm(layer.post_attention_layernorm)
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.qk_norm: QKNorm | None = None
        if hasattr(attention, "q_norm"):
            self.qk_norm = QKNorm(
                attention.q_norm, attention.k_norm, self.num_heads, self.num_kv_heads
            )

    def __call__(
        self, x: torch.Tensor, context: ForwardContext, cache: SlotKVCache
    ) -> torch.Tensor:
        """Map the residual stream [tokens, hidden] to that after this layer."""
        x = x + self.out(self._attend(self.qkv(self.input_norm(x)), context, cache))
        gate, up = self.gate_up(self.post_attention_norm(x)).chunk(2, dim=-1)
        return x + self.down(self.activation(gate) * up)

    def _attend(
        self, qkv: torch.Tensor, context: ForwardContext, cache: SlotKVCache
    ) -> torch.Tensor:
        """Store the new tokens' keys and values; return attention's outputs [tokens, num_heads *
        head_dim]. qkv is [tokens, (num_heads + 2 num_kv_heads) * head_dim]."""
        heads = qkv.view(len(qkv), -1, self.head_dim)
        qk = self._rope(heads[:, : self.num_heads + self.num_kv_heads], context)
        num_tokens = context.num_tokens
        keys, values = cache.store(
            self.index,
            qk[:num_tokens, self.num_heads :],
            heads[:num_tokens, self.num_heads + self.num_kv_heads :],
        )
        queries = qk[:, : self.num_heads]
        outputs = [self._attend_block(queries, keys, values, block) for block in context.blocks]
        if num_tokens < len(qkv):
            outputs.append(qkv.new_zeros(len(qkv) - num_tokens, outputs[0].shape[1]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_block(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block: AttentionBlock
    ) -> torch.Tensor:
        """Return attention's outputs of a block's tokens, [its tokens, num_heads * head_dim]."""
        # Query heads that share keys and values lie side by side like tokens: nothing is repeated.
        group = self.num_heads // self.num_kv_heads
        q = q[block.tokens].view(-1, block.num_tokens, self.num_kv_heads, group, self.head_dim)
        q = q.permute(0, 2, 3, 1, 4).reshape(len(q), self.num_kv_heads, -1, self.head_dim)
        where = (block.cache_rows, slice(None), slice(block.kv_length))
        out = attention(q, keys[where], values[where], block.mask, self.attention_scale)
        out = out.view(len(q), self.num_kv_heads, -1, block.num_tokens, self.head_dim)
        return out.permute(0, 3, 1, 2, 4).reshape(-1, self.num_heads * self.head_dim)

    def _rope(self, heads: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """Apply rotary position embeddings to queries and keys [tokens, heads, head_dim] at once,
        normalized before where the model does so."""
        if self.qk_norm is not None:
            heads = self.qk_norm(heads)
        return torch.addcmul(heads * context.cos, heads.roll(self.head_dim // 2, -1), context.sin)


def attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return softmax(q k^T * scale + mask) v for q [rows, kv_heads, queries, head_dim] and keys and
    values [rows, kv_heads, kv_length, head_dim]."""
    rows, kv_heads, queries, head_dim = q.shape
    heads, kv_length = rows * kv_heads, keys.shape[2]
    small = heads * kv_length * (12 + queries) < MIN_BMM_WORK
    fused_is_faster = small or torch.cpu._is_amx_tile_supported()
    if fused_is_faster or q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    # In bfloat16 on a CPU without tiles oneDNN's products take a third to two thirds of that time,
    # given matrices without gaps between them: it copies others itself, and slowly.
    keys, values = (kv.contiguous().view(heads, kv_length, head_dim) for kv in (keys, values))
    scores = torch.baddbmm(
        mask.expand(rows, kv_heads, queries, kv_length).reshape(heads, queries, kv_length),
        q.reshape(heads, queries, head_dim),
        keys.transpose(1, 2),
        alpha=scale,
    )
    return torch.bmm(scores.softmax(-1), values).view(q.shape)
