"""Mirrors the C structs of `structs.h` as ctypes classes, and checks that both agree.

A class is named as its C struct with `Struct` behind. `structs.h` explains the fields.
"""

import ctypes
from collections.abc import Iterable, Mapping
from ctypes import POINTER, Structure, c_char_p, c_float, c_int64, c_void_p

F32, BF16, I8 = 1, 2, 4
"""Packing of a matrix: how many of its values share four bytes."""
LANES, PANEL_PAIR = 16, 32
"""Outputs of a panel, and of two of them side by side."""
TILE_ROWS = 16
"""Tokens that AMX reads at a time."""
MAX_SCALE_GROUP, MAX_ROTATION = 128, 64
"""Inputs, at most, that share a scale in eight bits, and that are rotated together."""
NUM_LINEARS = 4
"""Fused linears of a layer: QKV, out, gate and up, down."""
CONSTANTS = {
    "LANES": LANES,
    "PANEL_PAIR": PANEL_PAIR,
    "TILE_ROWS": TILE_ROWS,
    "MAX_SCALE_GROUP": MAX_SCALE_GROUP,
    "MAX_ROTATION": MAX_ROTATION,
    "NUM_LINEARS": NUM_LINEARS,
}
"""What `structs.h` defines alike."""


class MatrixStruct(Structure):
    """Describes a linear layer: a weight matrix in panels, its scales and its bias."""

    _fields_ = [
        *((name, c_void_p) for name in ("panels", "scales", "bias")),
        *((name, c_int64) for name in ("inputs", "outputs", "packing", "groups")),
    ]


class LayerStruct(Structure):
    """Describes a decoder layer: its fused linears and the weights of its norms."""

    _fields_ = [
        ("linears", MatrixStruct * NUM_LINEARS),
        *((name, c_void_p) for name in ("input_norm", "post_attention_norm", "q_norm", "k_norm")),
    ]


class ModelStruct(Structure):
    """Describes a model: all that is the same for every forward."""

    _fields_ = [
        *((name, c_int64) for name in ("num_layers", "hidden_size", "intermediate_size")),
        *((name, c_int64) for name in ("num_heads", "num_kv_heads", "head_size")),
        *((name, c_int64) for name in ("packing", "embedding_packing")),
        *((name, c_float) for name in ("eps", "attention_scale")),
        ("layers", POINTER(LayerStruct)),
        *((name, c_void_p) for name in ("final_norm", "embedding")),
        ("lm_head", MatrixStruct),
    ]


class ChunkStruct(Structure):
    """Describes consecutive tokens of one sequence."""

    _fields_ = [(name, c_int64) for name in ("first_token", "num_tokens", "cache_row", "start")]


class LoraStruct(Structure):
    """Describes one adapter's matrices for one fused linear."""

    _fields_ = [("a", MatrixStruct), ("b", MatrixStruct * 3), ("num_linears", c_int64)]


class AdapterTokensStruct(Structure):
    """Names the tokens that one adapter serves, and its matrices."""

    _fields_ = [
        ("token_indices", POINTER(c_int64)),
        *((name, c_int64) for name in ("num_tokens", "rank")),
        ("loras", POINTER(LoraStruct)),
    ]


class TokenBatchStruct(Structure):
    """Describes tokens side by side: their chunks and their adapters."""

    _fields_ = [
        *((name, c_int64) for name in ("num_tokens", "num_chunks", "num_adapters")),
        ("chunks", POINTER(ChunkStruct)),
        ("adapters", POINTER(AdapterTokensStruct)),
    ]


class ForwardArgsStruct(Structure):
    """Holds the arguments of one forward: tokens, cache and where the logits go."""

    _fields_ = [
        *((name, c_int64) for name in ("num_threads", "kv_capacity")),
        *((name, c_void_p) for name in ("token_ids", "cos", "sin", "key_cache", "value_cache")),
        *((name, c_void_p) for name in ("scratch", "logits", "logit_rows")),
        ("tokens", TokenBatchStruct),
        ("logit_tokens", TokenBatchStruct),
    ]


class FieldLayoutStruct(Structure):
    """Holds an entry of the library's table of layouts (`layout.h`)."""

    _fields_ = [
        *((name, c_char_p) for name in ("struct_name", "field")),
        *((name, c_int64) for name in ("offset", "size")),
    ]


STRUCTS: tuple[type[Structure], ...] = (
    MatrixStruct,
    LayerStruct,
    ModelStruct,
    ChunkStruct,
    LoraStruct,
    AdapterTokensStruct,
    TokenBatchStruct,
    ForwardArgsStruct,
)

Layout = dict[str, tuple[int, int]]
"""Offset and size in bytes of each field, by "Struct.field"; of a whole struct by "Struct."; the
value of a constant, as a size, by ".NAME"."""


class StructLayoutError(Exception):
    """Says that the compiled library lays a struct out otherwise than the ctypes class."""


def layout_of(structs: Iterable[type[Structure]]) -> Layout:
    """Return the layout of ctypes classes, by their C names, and the constants."""
    layout: Layout = {f".{name}": (0, value) for name, value in CONSTANTS.items()}
    for struct in structs:
        name = struct.__name__.removesuffix("Struct")
        layout[f"{name}."] = (0, ctypes.sizeof(struct))
        for field, *_ in struct._fields_:
            slot = getattr(struct, field)
            layout[f"{name}.{field}"] = (slot.offset, slot.size)
    return layout


def check_layout(
    compiled: Mapping[str, tuple[int, int]], structs: Iterable[type[Structure]] = STRUCTS
) -> None:
    """Raise StructLayoutError unless the library's table holds exactly what ctypes lays out."""
    declared = layout_of(structs)
    for name in sorted({*compiled, *declared}):
        if compiled.get(name) != declared.get(name):
            found, wanted = (_described(name, each.get(name)) for each in (compiled, declared))
            raise StructLayoutError(
                f"{name.strip('.')} has {found} in the library and {wanted} in structs.py."
            )


def _described(name: str, slot: tuple[int, int] | None) -> str:
    if slot is None:
        return "no such field"
    return f"the value {slot[1]}" if name.startswith(".") else f"{slot[1]} bytes at {slot[0]}"
