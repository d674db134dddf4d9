"""Our own kernels from Python: the library that fits this CPU, and the structs that it reads.

pip compiles it from the C beside, where there is a compiler. `structs.h` has the same structs,
field by field, and says more of them.
"""

import mmap
from contextlib import suppress
from ctypes import CDLL, POINTER, Structure, byref, c_float, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

F32, BF16, I8 = 1, 2, 4
"""Kinds of matrices: values in four bytes."""
KINDS = {torch.float32: F32, torch.bfloat16: BF16}
LANES, COLUMN = 16, 32
"""Outputs of a panel, and of two of them side by side."""
WIDEST = 127
"""Steps from zero that a weight in eight bits may be."""
CHUNK, ALIGNED = 64 << 20, 64
"""Bytes that are asked of the system at a time, and that values begin at a multiple of."""


class Matrix(Structure):
    """A weight matrix."""

    _fields_ = [
        *((name, c_void_p) for name in ("panels", "scale", "bias")),
        *((name, c_int64) for name in ("inputs", "outputs", "kind", "groups")),
    ]


class Layer(Structure):
    """A layer's matrices and the weights of its norms."""

    _fields_ = [
        ("joint", Matrix * 4),
        *((name, c_void_p) for name in ("before", "after", "queries", "keys")),
    ]


class Model(Structure):
    """All that is the same for every step."""

    _fields_ = [
        *((name, c_int64) for name in ("layers", "hidden", "inner", "heads", "kv", "size")),
        *((name, c_int64) for name in ("kind", "words")),
        *((name, c_float) for name in ("eps", "scale")),
        ("layer", POINTER(Layer)),
        *((name, c_void_p) for name in ("norm", "embedding")),
        ("head", Matrix),
    ]


class Part(Structure):
    """Tokens that one row reads."""

    _fields_ = [(name, c_int64) for name in ("first", "count", "row", "start")]


class Low(Structure):
    """What an adapter adds to the linears of one joint."""

    _fields_ = [("down", Matrix), ("up", Matrix * 3), ("linears", c_int64)]


class Owner(Structure):
    """The tokens of one adapter."""

    _fields_ = [
        ("tokens", POINTER(c_int64)),
        *((name, c_int64) for name in ("count", "rank")),
        ("low", POINTER(Low)),
    ]


class Tokens(Structure):
    """Some tokens, side by side."""

    _fields_ = [
        *((name, c_int64) for name in ("count", "parts", "owners")),
        ("part", POINTER(Part)),
        ("owner", POINTER(Owner)),
    ]


class Step(Structure):
    """A step's tokens and where its results go."""

    _fields_ = [
        *((name, c_int64) for name in ("threads", "positions")),
        *((name, c_void_p) for name in ("ids", "cos", "sin", "keys", "values")),
        *((name, c_void_p) for name in ("scratch", "logits", "last")),
        ("all", Tokens),
        ("told", Tokens),
    ]


@cache
def library() -> CDLL | None:
    """The kernels for this CPU; None where it has no AVX-512 with VNNI, or none were compiled."""
    if not (torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported()):
        return None
    name = "avx512bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"
    spec = find_spec(f"{__name__}._{name}")
    if spec is None or spec.origin is None:
        return None
    found = CDLL(spec.origin)
    found.talkback_scratch.restype = c_int64
    found.talkback_scratch.argtypes = [POINTER(Model), POINTER(Step)]
    found.talkback_step.restype = None
    found.talkback_step.argtypes = [POINTER(Model), POINTER(Step)]
    found.talkback_product.restype = None
    found.talkback_product.argtypes = [POINTER(Matrix), *[c_void_p] * 3, c_int64, c_int64]
    return found


class Arena:
    """Memory in huge pages: weights that lie in many small ones take half as long again to read."""

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def place(self, values: torch.Tensor) -> torch.Tensor:
        """A copy of the values there."""
        if values.nbytes > len(self._left):
            chunk: Any = mmap.mmap(-1, max(values.nbytes, CHUNK))
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # some kernels have none
                    chunk.madvise(mmap.MADV_HUGEPAGE)
            self._left = torch.frombuffer(chunk, dtype=torch.uint8)
        taken = self._left[: values.nbytes]
        self._left = self._left[-(-values.nbytes // ALIGNED) * ALIGNED :]
        return taken.view(values.dtype).view(values.shape).copy_(values)


class Panels:
    """x -> x W^T + b by these kernels, the weight laid out for them."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        arena: Arena | None = None,
        group: int | None = None,
    ) -> None:
        """weight [out, in]. With a `group` it is rounded to bytes with a scale for each output, and
        so is x with one for each group of so many inputs."""
        self._shape = weight.shape
        outputs, inputs = weight.shape
        kind = I8 if group else KINDS[weight.dtype]
        self._bias = None if bias is None else bias.float().contiguous()
        self._scale: torch.Tensor | None = None
        if group:
            weight, self._scale = eight_bits(weight)
        padded = weight.new_zeros(-(-outputs // COLUMN) * COLUMN, inputs)
        padded[:outputs] = weight
        columns = padded.view(-1, 2, LANES, inputs // kind, kind).permute(0, 3, 1, 2, 4)
        self._panels = arena.place(columns) if arena else columns.contiguous()
        self.matrix = Matrix(
            pointer(self._panels),
            pointer(self._scale),
            pointer(self._bias),
            inputs,
            outputs,
            kind,
            inputs // group if group else 1,
        )
        self.nbytes = self._panels.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[.., in] -> [.., out], in x's type."""
        matrix = self.matrix
        rows = x.reshape(-1, matrix.inputs).float().contiguous()
        packed = matrix.inputs // matrix.kind + 2 * matrix.groups
        room = torch.empty(len(rows) * packed, dtype=torch.int32)
        y = torch.empty(len(rows), matrix.outputs)
        there = library()
        assert there is not None
        there.talkback_product(
            byref(matrix),
            y.data_ptr(),
            rows.data_ptr(),
            room.data_ptr(),
            len(rows),
            torch.get_num_threads(),
        )
        return y.to(x.dtype).view(*x.shape[:-1], matrix.outputs)

    def dense(self) -> torch.Tensor:
        """The weight [out, in], bit for bit as it came; not of one that was rounded."""
        outputs, inputs = self._shape
        kind = self.matrix.kind
        columns = self._panels.view(-1, inputs // kind, 2, LANES, kind).permute(0, 2, 3, 1, 4)
        return columns.reshape(-1, inputs)[:outputs]


def eight_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [out, in] -> the same in steps, 128 added to each, and the size of a step [out]."""
    full = weight.float()
    scale = (full.abs().amax(1) / WIDEST).clamp_min(torch.finfo(torch.float32).tiny)
    return ((full / scale[:, None]).round() + 128).to(torch.uint8), scale


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Where its values lie."""
    return None if tensor is None else tensor.data_ptr()
