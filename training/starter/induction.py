"""Initialises a small Llama with induction heads, so that it can copy before it is trained.

A model of a few million parameters does not find copying by itself in the two hours that the
starter model may train: `[A][B] ... [A] -> [B]` needs two layers to agree (Olsson et al. 2022,
"In-context Learning and Induction Heads"), and until both are there neither gets a gradient worth
having. Copying is what an exemplar in the prompt asks for, so we set the two layers by hand:

- layer 0: one head attends to the token before, one to the token two before, by position alone,
  and each writes what it read into a part of the residual stream that embeddings leave empty;
- layers 2 and 3: a head looks for the place whose two tokens before are the current token and
  the one before it, and adds the embedding of the token found there, whose logit therefore rises.

All of it is an initial value like any other; training goes on to change it.
"""

import math

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

EMBEDDING_STD = 0.06
"""Standard deviation of the embedding's entries."""
PREVIOUS_TOKEN_PAIRS = 9
"""Rotary pairs, the fastest, by which the heads of layer 0 know a position."""
PREVIOUS_TOKEN_SHARPNESS = 80.0
"""Attention score of the right position in layer 0."""
MATCH_SHARPNESS = 12.0
"""Attention score, about, of a position whose two previous tokens match."""
COPY_GAIN = 8.0
"""Times its own norm that the copied token's embedding is added to the residual stream."""
COPY_LAYERS = (2, 3)


def set_induction_heads(model: LlamaForCausalLM, seed: int = 0) -> None:
    """Overwrite the embedding and four heads of a freshly initialised model, in place."""
    rng = torch.Generator().manual_seed(seed)
    config = model.config
    width = config.hidden_size
    token_dims = slice(1, width // 2)
    previous_dims = random_orthonormal(width // 4, width // 2 - 1, rng)
    mixes = (random_orthonormal(slow_dims(config).numel(), width // 4, rng) for _ in range(2))
    with torch.no_grad():
        scale_down_residual_writes(model)
        set_embedding(model, token_dims, rng)
        for offset in (1, 2):
            set_previous_token_head(model, offset, token_dims, previous_dims)
        current_mix, previous_mix = mixes
        read = random_orthonormal(width // 2 - 1, width // 2 - 1, rng)
        half = config.head_dim
        for layer, part in zip(COPY_LAYERS, (read[:half], read[half:]), strict=True):
            set_match_scores(model, layer, token_dims, previous_dims, current_mix, previous_mix)
            set_copy_output(model, layer, token_dims, part)


def random_orthonormal(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """Return a random [rows, columns] matrix whose shorter side is orthonormal."""
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=rng)
    basis: Tensor = torch.linalg.qr(tall).Q
    return basis if rows >= columns else basis.T


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """Return the radians a position that each rotary pair rotates by, [head_dim / 2].

    Pair p is made of the dims p and p + head_dim / 2.
    """
    theta: float = config.rope_parameters["rope_theta"]
    pairs = torch.arange(config.head_dim // 2) / (config.head_dim // 2)
    return torch.pow(theta, -pairs)


def slow_dims(config: LlamaConfig) -> Tensor:
    """Return the dims of a head that hardly rotate within a conversation: they compare content."""
    slow = (rotary_frequencies(config) < 2e-3).nonzero().flatten()
    return torch.cat([slow, slow + config.head_dim // 2])


def scale_down_residual_writes(model: LlamaForCausalLM) -> None:
    """Shrink what untrained parts write, so that they don't drown the circuit (GPT-2's scaling)."""
    scale = 1 / math.sqrt(2 * len(model.model.layers))
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(scale)
        layer.mlp.down_proj.weight.mul_(scale)


def set_embedding(model: LlamaForCausalLM, token_dims: slice, rng: torch.Generator) -> None:
    """Set the embedding: dim 0 is constant, `token_dims` tells tokens apart, the rest is empty."""
    table = model.model.embed_tokens.weight
    size = token_dims.stop - token_dims.start
    random = torch.randn(table.shape[0], size, generator=rng)
    norm = EMBEDDING_STD * math.sqrt(size)
    table.zero_()
    table[:, token_dims] = norm * random / random.norm(dim=1, keepdim=True)
    table[:, 0] = norm


def set_previous_token_head(
    model: LlamaForCausalLM, offset: int, token_dims: slice, previous_dims: Tensor
) -> None:
    """Make head `offset - 1` of layer 0 attend `offset` tokens back and write that token there.

    Query and key read only the constant dim, so they are the same vector everywhere but for the
    rotation; the query is rotated back by `offset` positions, so that the score
    sum_p cos(w_p (distance - offset)) is highest exactly there.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    size, half = config.head_dim, config.head_dim // 2
    start = (offset - 1) * size
    constant = math.sqrt(config.hidden_size / 2)  # what the norm makes of dim 0
    gain = math.sqrt(PREVIOUS_TOKEN_SHARPNESS * math.sqrt(size) / PREVIOUS_TOKEN_PAIRS) / constant
    rotation = rotary_frequencies(config)[:PREVIOUS_TOKEN_PAIRS] * offset
    for weight in (attention.q_proj.weight, attention.k_proj.weight):
        weight[start : start + size] = 0
    attention.k_proj.weight[start : start + PREVIOUS_TOKEN_PAIRS, 0] = gain
    attention.q_proj.weight[start : start + PREVIOUS_TOKEN_PAIRS, 0] = gain * rotation.cos()
    attention.q_proj.weight[start + half : start + half + PREVIOUS_TOKEN_PAIRS, 0] = (
        -gain * rotation.sin()
    )
    attention.v_proj.weight[start : start + size] = 0
    attention.v_proj.weight[start : start + size, token_dims] = previous_dims
    write = torch.zeros_like(attention.o_proj.weight[:, start : start + size])
    empty = config.hidden_size // 2 + (offset - 1) * size
    # The norm scaled what is read here by `constant / norm of an embedding`: undo that.
    norm = model.model.embed_tokens.weight[0, 0].item()
    write[empty : empty + size] = torch.eye(size) * norm / constant
    attention.o_proj.weight[:, start : start + size] = write


def set_match_scores(
    model: LlamaForCausalLM,
    layer: int,
    token_dims: slice,
    previous_dims: Tensor,
    current_mix: Tensor,
    previous_mix: Tensor,
) -> None:
    """Make head 0 of `layer` match a position whose two previous tokens are the last two.

    The query is made of this token and the one before it, the key of the two before the position,
    each pair through the same projection into the dims that hardly rotate.
    """
    config, attention = model.config, model.model.layers[layer].self_attn
    size, dims = config.head_dim, slow_dims(config)
    first = slice(config.hidden_size // 2, config.hidden_size // 2 + size)
    second = slice(first.stop, first.stop + size)
    # The constant and the token's dims have equal norms, and each of the two previous tokens keeps
    # half of its dims: 2 + 2 / 2 parts.
    part = config.hidden_size / 3
    gain = math.sqrt(2 * MATCH_SHARPNESS * math.sqrt(size) / (part / 2))
    for weight in (attention.q_proj.weight, attention.k_proj.weight):
        weight[:size] = 0
    attention.q_proj.weight[dims, token_dims] = gain * current_mix @ previous_dims
    attention.q_proj.weight[dims, first] = gain * previous_mix
    attention.k_proj.weight[dims, first] = gain * current_mix
    attention.k_proj.weight[dims, second] = gain * previous_mix


def set_copy_output(model: LlamaForCausalLM, layer: int, token_dims: slice, part: Tensor) -> None:
    """Make head 0 of `layer` add the attended token's embedding, in the dims that `part` reads."""
    config, attention = model.config, model.model.layers[layer].self_attn
    size = config.head_dim
    read = torch.zeros(size, config.hidden_size)
    read[: part.shape[0], token_dims] = part
    norm = model.model.embed_tokens.weight[0, 0].item()
    gain = COPY_GAIN * norm / math.sqrt(config.hidden_size / 3)
    attention.v_proj.weight[:size] = read
    attention.o_proj.weight[:, :size] = gain * read.T
