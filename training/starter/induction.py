"""Start a small Llama with an induction circuit, so that it can copy before it has learnt anything.

A model of a few million parameters does not find copying by itself in the two hours that the
starter model may train: `[A][B] ... [A] -> [B]` needs two layers to agree (Olsson et al. 2022,
"In-context Learning and Induction Heads"), and until both are there neither gets a gradient worth
having. Copying is what an exemplar in the prompt asks for, so we set the two layers by hand:

- layer 0: one head attends to the token before, one to the token two before, by position alone,
  and each writes what it saw into a part of the residual stream that embeddings leave empty;
- layers 2 and 3: a head looks for the place whose two tokens before are the current token and
  the one before it, and adds the embedding of the token found there, whose logit therefore rises.

All of it is an initial value like any other; training goes on to change it.
"""

import math

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

EMBEDDING_STD = 0.06
PREVIOUS_TOKEN_PAIRS = 9
PREVIOUS_TOKEN_SHARPNESS = 80.0
MATCH_SHARPNESS = 12.0
COPY_GAIN = 8.0
COPY_LAYERS = (2, 3)


def set_induction_heads(model: LlamaForCausalLM, seed: int = 0) -> None:
    """Overwrite the embedding and four heads of a freshly initialised model, in place."""
    rng = torch.Generator().manual_seed(seed)
    config = model.config
    width = config.hidden_size
    meaning = slice(1, width // 2)
    seen = random_orthonormal(width // 4, width // 2 - 1, rng)
    mixes = (random_orthonormal(slow_dims(config).numel(), width // 4, rng) for _ in range(2))
    with torch.no_grad():
        scale_down_residual_writes(model)
        set_embedding(model, meaning, rng)
        for back in (1, 2):
            set_previous_token_head(model, back, meaning, seen)
        here, before = mixes
        read = random_orthonormal(width // 2 - 1, width // 2 - 1, rng)
        half = config.head_dim
        for layer, part in zip(COPY_LAYERS, (read[:half], read[half:]), strict=True):
            set_match_scores(model, layer, meaning, seen, here, before)
            set_copy_output(model, layer, meaning, part)


def random_orthonormal(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """A random matrix (rows x columns) whose shorter side is orthonormal."""
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=rng)
    basis: Tensor = torch.linalg.qr(tall).Q
    return basis if rows >= columns else basis.T


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """Radians a position that each rotary pair turns; pair p is dims p and p + head_dim / 2."""
    theta: float = config.rope_parameters["rope_theta"]
    pairs = torch.arange(config.head_dim // 2) / (config.head_dim // 2)
    return torch.pow(theta, -pairs)


def slow_dims(config: LlamaConfig) -> Tensor:
    """Dims of a head that hardly turn within a conversation: content can be compared there."""
    slow = (rotary_frequencies(config) < 2e-3).nonzero().flatten()
    return torch.cat([slow, slow + config.head_dim // 2])


def scale_down_residual_writes(model: LlamaForCausalLM) -> None:
    """Shrink what untrained parts write, so that they don't drown the circuit (GPT-2's scaling)."""
    scale = 1 / math.sqrt(2 * len(model.model.layers))
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(scale)
        layer.mlp.down_proj.weight.mul_(scale)


def set_embedding(model: LlamaForCausalLM, meaning: slice, rng: torch.Generator) -> None:
    """Dim 0 is the same for every token, `meaning` tells tokens apart, the rest is empty."""
    table = model.model.embed_tokens.weight
    size = meaning.stop - meaning.start
    random = torch.randn(table.shape[0], size, generator=rng)
    norm = EMBEDDING_STD * math.sqrt(size)
    table.zero_()
    table[:, meaning] = norm * random / random.norm(dim=1, keepdim=True)
    table[:, 0] = norm


def set_previous_token_head(
    model: LlamaForCausalLM, back: int, meaning: slice, seen: Tensor
) -> None:
    """Head `back - 1` of layer 0 attends `back` tokens back and writes that token's `seen`.

    Query and key read only the constant dim, so they are the same vector everywhere but for the
    rotation; the query is turned back by `back` positions, so that the score
    sum_p cos(w_p (distance - back)) is highest exactly there.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    size, half = config.head_dim, config.head_dim // 2
    start = (back - 1) * size
    constant = math.sqrt(config.hidden_size / 2)  # what the norm makes of dim 0
    gain = math.sqrt(PREVIOUS_TOKEN_SHARPNESS * math.sqrt(size) / PREVIOUS_TOKEN_PAIRS) / constant
    turn = rotary_frequencies(config)[:PREVIOUS_TOKEN_PAIRS] * back
    for weight in (attention.q_proj.weight, attention.k_proj.weight):
        weight[start : start + size] = 0
    attention.k_proj.weight[start : start + PREVIOUS_TOKEN_PAIRS, 0] = gain
    attention.q_proj.weight[start : start + PREVIOUS_TOKEN_PAIRS, 0] = gain * turn.cos()
    attention.q_proj.weight[start + half : start + half + PREVIOUS_TOKEN_PAIRS, 0] = (
        -gain * turn.sin()
    )
    attention.v_proj.weight[start : start + size] = 0
    attention.v_proj.weight[start : start + size, meaning] = seen
    write = torch.zeros_like(attention.o_proj.weight[:, start : start + size])
    empty = config.hidden_size // 2 + (back - 1) * size
    # The norm scaled what is read here by `constant / norm of an embedding`: undo that.
    norm = model.model.embed_tokens.weight[0, 0].item()
    write[empty : empty + size] = torch.eye(size) * norm / constant
    attention.o_proj.weight[:, start : start + size] = write


def set_match_scores(
    model: LlamaForCausalLM, layer: int, meaning: slice, seen: Tensor, here: Tensor, before: Tensor
) -> None:
    """Head 0 of `layer` scores a place by how well the two tokens before it match the last two.

    The query is made of this token and the one before it, the key of the two before the place,
    each pair through the same projection into the dims that hardly turn.
    """
    config, attention = model.config, model.model.layers[layer].self_attn
    size, dims = config.head_dim, slow_dims(config)
    first = slice(config.hidden_size // 2, config.hidden_size // 2 + size)
    second = slice(first.stop, first.stop + size)
    # Constant and meaning have equal norms; each `seen` keeps half of a token: 2 + 2 / 2 parts.
    part = config.hidden_size / 3
    gain = math.sqrt(2 * MATCH_SHARPNESS * math.sqrt(size) / (part / 2))
    for weight in (attention.q_proj.weight, attention.k_proj.weight):
        weight[:size] = 0
    attention.q_proj.weight[dims, meaning] = gain * here @ seen
    attention.q_proj.weight[dims, first] = gain * before
    attention.k_proj.weight[dims, first] = gain * here
    attention.k_proj.weight[dims, second] = gain * before


def set_copy_output(model: LlamaForCausalLM, layer: int, meaning: slice, part: Tensor) -> None:
    """Head 0 of `layer` adds the attended token's embedding, the dims of it that `part` reads."""
    config, attention = model.config, model.model.layers[layer].self_attn
    size = config.head_dim
    read = torch.zeros(size, config.hidden_size)
    read[: part.shape[0], meaning] = part
    norm = model.model.embed_tokens.weight[0, 0].item()
    gain = COPY_GAIN * norm / math.sqrt(config.hidden_size / 3)
    attention.v_proj.weight[:size] = read
    attention.o_proj.weight[:, :size] = gain * read.T
