"""Loads the compiled kernels for this CPU, and checks that they read what Python writes."""

import logging
import os
from ctypes import CDLL, POINTER, byref, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path

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


AMX = "_amx"
_refused: set[str] = set()
"""Libraries that have computed something wrong on this CPU."""


@cache
def kernel_library() -> CDLL | None:
    """Return the kernels for this CPU; None where it has no AVX-512 with VNNI, where none were
    compiled, or where those compiled lay their structs out otherwise (both are logged)."""
    if not cpu_has_instructions():
        return None
    paths = [path for name in _names() if (path := find_library(name))]
    if not paths:
        log.warning(
            "This CPU could run the kernels, but they were not compiled at the installation: torch "
            "computes, more slowly. Install a C compiler, then Talkback again by "
            "TALKBACK_REQUIRE_KERNELS=1 pip install --force-reinstall --no-deps."
        )
        return None
    library = CDLL(paths[0])
    try:
        check_layout(compiled_layout(library))
    except StructLayoutError as error:
        log.error(
            "The kernels in %s were compiled from other sources: %s Compile them again with "
            "pip install; until then torch computes, more slowly.",
            paths[0],
            error,
        )
        return None
    log.info("The kernels of this CPU are those in %s.", paths[0])
    return _declare_functions(library)


def _names() -> list[str]:
    """Return the libraries that this CPU can run, fastest first."""
    if not torch.cpu._is_avx512_bf16_supported():
        return ["_avx512"]
    return [*([AMX] if may_use_amx() and AMX not in _refused else []), "_avx512bf16"]


def find_library(name: str) -> str | None:
    """Return where a library lies; None if it was not compiled."""
    spec = find_spec(f"{__package__}.{name}")
    return spec.origin if spec else None


def refuse_amx() -> bool:
    """Have AVX-512 compute from now on what AMX has computed wrong; tell whether it did."""
    used = kernel_library()
    if used is None or used._name != find_library(AMX):
        return False
    _refused.add(AMX)
    kernel_library.cache_clear()
    return True


def may_use_amx() -> bool:
    """Tell whether this CPU has AMX for bfloat16 and bytes, the system lets us use it, and nobody
    has turned it off (TALKBACK_AMX=0)."""
    if os.environ.get("TALKBACK_AMX") == "0":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    except OSError:  # no Linux
        return False
    return {"amx_tile", "amx_bf16", "amx_int8"} <= {*flags} and bool(torch.cpu._init_amx())


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
