"""Lays weights out in panels, as the kernels read them (see `structs.h`)."""

import math
import mmap
from contextlib import suppress
from ctypes import byref
from typing import Any

import torch

from chatbot.engine.local.kernels import library
from chatbot.engine.local.kernels.structs import (
    BF16,
    F32,
    I8,
    LANES,
    MAX_ROTATION,
    MAX_SCALE_GROUP,
    PANEL_PAIR,
    TILE_ROWS,
    MatrixStruct,
)

PACKINGS = {torch.float32: F32, torch.bfloat16: BF16}
MAX_INT8 = 127
"""The largest whole number that a weight in eight bits is rounded to, up or down."""
ARENA_CHUNK, ALIGNMENT = 64 << 20, 64
"""Bytes that an arena asks of the system at a time, and that tensors in it are aligned to."""


class HugePageArena:
    """Allocates tensors in huge pages: weights that lie in many small pages take half as long again
    to read."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def copy(self, values: torch.Tensor) -> torch.Tensor:
        """Return a copy of a tensor that lies in the arena."""
        if values.nbytes > len(self._free):
            chunk: Any = mmap.mmap(-1, max(values.nbytes, ARENA_CHUNK))
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # some systems have none
                    chunk.madvise(mmap.MADV_HUGEPAGE)
            self._free = torch.frombuffer(chunk, dtype=torch.uint8)
        taken = self._free[: values.nbytes]
        self._free = self._free[-(-values.nbytes // ALIGNMENT) * ALIGNMENT :]
        return taken.view(values.dtype).view(values.shape).copy_(values)


class PanelLinear:
    """Computes x -> x W^T + b by the kernels, over a weight in panels."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        arena: HugePageArena | None = None,
        group: int | None = None,
    ) -> None:
        """Pack a weight [outputs, inputs]. With a `group` it is rotated and quantized to bytes, and
        so is x, with a scale for each group of so many inputs of an output or a token."""
        self._shape = weight.shape
        outputs, inputs = weight.shape
        if group and (group > MAX_SCALE_GROUP or inputs % group):
            raise ValueError(
                f"A group of {group} exceeds {MAX_SCALE_GROUP} or is no divisor of {inputs} inputs."
            )
        packing = I8 if group else PACKINGS[weight.dtype]
        self._bias = None if bias is None else bias.float().contiguous()
        self._scales: torch.Tensor | None = None
        if group:
            rotated = rotate(weight.float(), math.gcd(group, MAX_ROTATION))
            weight, scales = quantize_int8(rotated, group)
            # [pairs, 32, groups] -> [pairs, groups, 32]
            by_pair = _pad_outputs(scales).view(-1, PANEL_PAIR, inputs // group)
            self._scales = by_pair.transpose(1, 2).contiguous()
        padded = _pad_outputs(weight)
        # [pairs, 2, 16, dwords, packing] -> [pairs, dwords, 2, 16, packing]
        panels = padded.view(-1, 2, LANES, inputs // packing, packing).permute(0, 3, 1, 2, 4)
        self._panels = arena.copy(panels) if arena else panels.contiguous()
        self.matrix = MatrixStruct(
            data_pointer(self._panels),
            data_pointer(self._scales),
            data_pointer(self._bias),
            inputs,
            outputs,
            packing,
            inputs // group if group else 1,
        )
        self.nbytes = self._panels.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map [.., inputs] to [.., outputs], in x's type."""
        matrix = self.matrix
        rows = x.reshape(-1, matrix.inputs).float().contiguous()
        dwords = matrix.inputs // matrix.packing + 2 * matrix.groups
        packed = torch.empty((len(rows) + TILE_ROWS - 1) * dwords, dtype=torch.int32)
        y = torch.empty(len(rows), matrix.outputs)
        kernels = library.kernel_library()
        assert kernels is not None
        kernels.talkback_gemm(
            byref(matrix),
            y.data_ptr(),
            rows.data_ptr(),
            packed.data_ptr(),
            len(rows),
            torch.get_num_threads(),
        )
        return y.to(x.dtype).view(*x.shape[:-1], matrix.outputs)

    def dense(self) -> torch.Tensor:
        """Return the weight [outputs, inputs] bit for bit as it came; not of one in eight bits."""
        outputs, inputs = self._shape
        packing = self.matrix.packing
        panels = self._panels.view(-1, inputs // packing, 2, LANES, packing).permute(0, 2, 3, 1, 4)
        return panels.reshape(-1, inputs)[:outputs]


def rotate(weight: torch.Tensor, block: int) -> torch.Tensor:
    """Rotate each `block`, a power of two, of a weight's inputs back by the Hadamard matrix that
    the kernels rotate x by, so that their product stays.

    An outlier of x leaves the other inputs of its scale few steps; rotated, it is spread over its
    block. Source: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference", 2024.
    """
    hadamard = torch.ones(1, 1)
    while len(hadamard) < block:
        above = torch.cat([hadamard, hadamard], dim=1)
        hadamard = torch.cat([above, torch.cat([hadamard, -hadamard], dim=1)])
    return (weight.view(-1, block) @ hadamard / block).view_as(weight)


def quantize_int8(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight [outputs, inputs] in float32 to whole numbers of a scale
    [outputs, inputs / group]; return the numbers with 128 added, as unsigned bytes, which vpdpbusd
    wants, and the scales."""
    grouped = weight.view(len(weight), -1, group)
    scale = (grouped.abs().amax(2) / MAX_INT8).clamp_min(torch.finfo(torch.float32).tiny)
    return ((grouped / scale[:, :, None]).round() + 128).to(torch.uint8).view_as(weight), scale


def _pad_outputs(rows: torch.Tensor) -> torch.Tensor:
    """Return rows [outputs, ..] with zeros up to a whole number of panel pairs."""
    padded = rows.new_zeros(-(-len(rows) // PANEL_PAIR) * PANEL_PAIR, rows.shape[1])
    padded[: len(rows)] = rows
    return padded


def data_pointer(tensor: torch.Tensor | None) -> int | None:
    """Return the address of a tensor's values; None for no tensor."""
    return None if tensor is None else tensor.data_ptr()
