"""The structs that Python fills and the kernels read: laid out alike, or refused."""

from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p
from typing import Any

import pytest

from chatbot.engine.local.kernels import library, structs
from chatbot.engine.local.kernels.library import compiled_layout, kernel_library
from chatbot.engine.local.kernels.structs import (
    STRUCTS,
    AdapterTokensStruct,
    ChunkStruct,
    LoraStruct,
    StructLayoutError,
    check_layout,
    layout_of,
)

needs_kernels = pytest.mark.skipif(kernel_library() is None, reason="no kernels on this machine")


def changed(struct: type[Structure], fields: list[Any]) -> list[type[Structure]]:
    """Return all structs, one of them with other fields under its own name."""
    other = type(struct.__name__, (Structure,), {"_fields_": fields})
    return [other if known is struct else known for known in STRUCTS]


def chunk_with(*names: str) -> list[type[Structure]]:
    """Return all structs, with a ChunkStruct of these fields."""
    return changed(ChunkStruct, [(name, c_int64) for name in names])


WRONG = {
    "swapped": (chunk_with("num_tokens", "first_token", "cache_row", "start"), "Chunk.first_token"),
    "missing": (chunk_with("first_token", "num_tokens", "cache_row"), "Chunk has 32 bytes"),
    "one too many": (
        chunk_with("first_token", "num_tokens", "cache_row", "start", "end"),
        "Chunk has 32 bytes at 0 in the library and 40",
    ),
    "renamed": (
        chunk_with("first_token", "num_tokens", "cache_row", "position"),
        "no such field in the library",
    ),
    "resized": (
        changed(
            AdapterTokensStruct,
            [
                ("token_indices", POINTER(c_int64)),
                ("num_tokens", c_int64),
                ("rank", c_int32),  # alignment hides it in the size of the whole
                ("loras", POINTER(LoraStruct)),
            ],
        ),
        "AdapterTokens.rank has 8 bytes at 16 in the library and 4 bytes",
    ),
}


@pytest.mark.parametrize("capable", [True, False])
def test_kernels_that_were_not_compiled_are_missed_where_the_cpu_could_run_them(
    capable: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "cpu_has_instructions", lambda: capable)
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    kernel_library.cache_clear()
    try:
        assert kernel_library() is None
    finally:
        kernel_library.cache_clear()
    assert ["TALKBACK_REQUIRE_KERNELS=1 pip" in one.message for one in caplog.records] == (
        [True] if capable else []
    )


@needs_kernels
def test_the_compiled_structs_are_those_of_python() -> None:
    found = kernel_library()
    assert found is not None
    assert compiled_layout(found) == layout_of(STRUCTS)


@needs_kernels
@pytest.mark.parametrize("structs_of_python, words", WRONG.values(), ids=WRONG.keys())
def test_a_struct_that_differs_is_named_and_refused(
    structs_of_python: list[type[Structure]], words: str
) -> None:
    found = kernel_library()
    assert found is not None
    with pytest.raises(StructLayoutError, match=words):
        check_layout(compiled_layout(found), structs_of_python)


@needs_kernels
def test_a_constant_that_differs_is_named_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kernel_library()
    assert found is not None
    monkeypatch.setitem(structs.CONSTANTS, "MAX_ROTATION", 32)
    with pytest.raises(StructLayoutError, match="MAX_ROTATION has the value 64 in the library and"):
        check_layout(compiled_layout(found))


class OlderLibrary:
    """Stands in for kernels that were compiled before they had a table of layouts."""


@needs_kernels
@pytest.mark.parametrize("older", [False, True], ids=["another struct", "no table"])
def test_kernels_of_other_sources_are_refused_in_one_line_of_the_log(
    older: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class ChunkStruct(Structure):
        _fields_ = [
            (name, c_void_p) for name in ("num_tokens", "first_token", "cache_row", "start")
        ]

    if older:
        monkeypatch.setattr(library, "CDLL", lambda _: OlderLibrary())
    else:
        table = {**layout_of(STRUCTS), **layout_of([ChunkStruct])}
        monkeypatch.setattr(library, "compiled_layout", lambda _: table)
    kernel_library.cache_clear()
    try:
        assert kernel_library() is None
    finally:
        kernel_library.cache_clear()
    (record,) = caplog.records
    assert record.levelname == "ERROR" and "Compile them again" in record.message
