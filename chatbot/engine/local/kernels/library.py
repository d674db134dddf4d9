"""Loads the compiled kernels for this CPU, and checks that they read what Python writes."""

import logging
from ctypes import CDLL, POINTER, byref, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec

import torch

from chatbot.engine.local.kernels.structs import (
    FieldLayoutStruct,
    ForwardArgsStruct,
    Layout,
    MatrixStruct,
    ModelStruct,
    StructLayoutError,
    check_layout,
)

log = logging.getLogger(__name__)


@cache
def kernel_library() -> CDLL | None:
    """Return the kernels for this CPU; None where it has no AVX-512 with VNNI, where none were
    compiled, or where those compiled lay their structs out otherwise (both are logged)."""
    if not cpu_has_instructions():
        return None
    name = "_avx512bf16" if torch.cpu._is_avx512_bf16_supported() else "_avx512"
    spec = find_spec(f"{__package__}.{name}")
    if spec is None or spec.origin is None:
        log.warning(
            "This CPU could run the kernels, but they were not compiled at the installation: torch "
            "computes, more slowly. Install a C compiler, then Talkback again by "
            "TALKBACK_REQUIRE_KERNELS=1 pip install --force-reinstall --no-deps."
        )
        return None
    library = CDLL(spec.origin)
    try:
        check_layout(compiled_layout(library))
    except StructLayoutError as error:
        log.error(
            "The kernels in %s were compiled from other sources: %s Compile them again with "
            "pip install; until then torch computes, more slowly.",
            spec.origin,
            error,
        )
        return None
    return _declare_functions(library)


def cpu_has_instructions() -> bool:
    """Tell whether this CPU has the instructions of the kernels: AVX-512 with VNNI."""
    return torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported()


def compiled_layout(library: CDLL) -> Layout:
    """Return the layout of the structs that a library was compiled with.

    A library without a table is older than the table: StructLayoutError.
    """
    if not hasattr(library, "talkback_layout"):
        raise StructLayoutError("they say nothing of their structs.")
    library.talkback_layout.restype = POINTER(FieldLayoutStruct)
    library.talkback_layout.argtypes = [POINTER(c_int64)]
    count = c_int64()
    table = library.talkback_layout(byref(count))
    return {
        f"{entry.struct_name.decode()}.{entry.field.decode()}": (entry.offset, entry.size)
        for entry in table[: count.value]
    }


def count_layers(library: CDLL, address: int) -> None:
    """Have the forwards from now on increase the 64-bit number at ``address`` with each layer."""
    if hasattr(library, "talkback_progress"):  # older ones count nothing
        c_void_p.in_dll(library, "talkback_progress").value = address


def _declare_functions(library: CDLL) -> CDLL:
    """Give the exported functions of `forward.c` their types."""
    library.talkback_scratch_floats.restype = c_int64
    library.talkback_scratch_floats.argtypes = [POINTER(ModelStruct), POINTER(ForwardArgsStruct)]
    library.talkback_forward.restype = None
    library.talkback_forward.argtypes = [POINTER(ModelStruct), POINTER(ForwardArgsStruct)]
    library.talkback_gemm.restype = None
    library.talkback_gemm.argtypes = [POINTER(MatrixStruct), *[c_void_p] * 3, c_int64, c_int64]
    return library
