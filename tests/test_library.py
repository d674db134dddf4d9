"""Which kernels a CPU computes with: those for AMX where it has that, unless they compute wrong."""

from collections.abc import Iterator
from ctypes import c_int32
from pathlib import Path

import pytest
import torch

from chatbot.engine.local.kernels import library
from chatbot.engine.local.kernels.library import kernel_library
from chatbot.engine.local.kernels.panels import PanelLinear
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.model.base import load_base
from tests.fixtures import tiny_models
from tests.fixtures.kernel_builds import use_emulation

pytestmark = pytest.mark.skipif(
    kernel_library() is None or not torch.cpu._is_avx512_bf16_supported(),
    reason="no kernels that AMX could be emulated beside",
)


HAS_AMX = library.may_use_amx()


@pytest.fixture(autouse=True)
def without_amx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without AMX, and leave the kernels of this CPU to other tests."""
    monkeypatch.setattr(library, "may_use_amx", lambda: False)
    kernel_library.cache_clear()
    yield
    kernel_library.cache_clear()


def products(dtype: torch.dtype, group: int | None) -> list[torch.Tensor]:
    """Return products of several sizes by the kernels in use, each of several tokens."""
    torch.manual_seed(1)
    sizes = [(70, 96), (32, 576), (7, 240), (96, 32), (40, 24), (33, 52), (64, 1536)]
    return [
        PanelLinear(torch.randn(outputs, inputs, dtype=dtype), torch.randn(outputs), None, group)(
            torch.randn(tokens, inputs)
        )
        for outputs, inputs in sizes
        for tokens in (1, 5, 16, 17, 32, 33, 70)
        if not group or inputs % group == 0
    ]


@pytest.mark.parametrize(
    "dtype, group",
    [(torch.bfloat16, None), (torch.float32, 12), (torch.float32, 48), (torch.float32, 96)],
)
def test_amx_computes_the_bytes_of_avx512_bit_for_bit_and_bfloat16_nearly(
    dtype: torch.dtype, group: int | None, emulated_amx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = products(dtype, group)
    use_emulation(monkeypatch, emulated_amx)
    found = products(dtype, group)
    same = [torch.equal(*each) for each in zip(found, expected, strict=True)]
    if group:
        assert all(same)
    else:
        assert not all(same), "AMX sums in another order"
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() < 1e-5 * other.norm()


@pytest.mark.skipif(not HAS_AMX, reason="no AMX to compare its emulation with")
@pytest.mark.parametrize("dtype, group", [(torch.bfloat16, None), (torch.float32, 48)])
def test_amx_computes_what_its_emulation_does(
    dtype: torch.dtype, group: int | None, emulated_amx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "may_use_amx", lambda: True)
    kernel_library.cache_clear()
    expected = products(dtype, group)
    use_emulation(monkeypatch, emulated_amx)
    for found, by_amx in zip(products(dtype, group), expected, strict=True):
        assert torch.equal(found, by_amx)


def test_amx_that_computes_wrong_is_refused_and_avx512_serves(
    emulated_amx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = str(tiny_models.write_model(tmp_path, "llama", initializer_range=0.1))
    request = Request([*range(10, 80)], BASE, Sampling(max_tokens=12))

    def serve() -> tuple[LocalEngine, list[int]]:
        engine = LocalEngine(load_base(folder, dtype="bfloat16"), EngineSettings(threads=1))
        stream = engine.submit(request)
        stream.wait()
        engine.close()
        return engine, stream.ids

    _, expected = serve()
    use_emulation(monkeypatch, emulated_amx)
    kernels = kernel_library()
    assert kernels is not None and kernels._name == str(emulated_amx)
    engine, _ = serve()
    assert engine.scheduler.notes == [] and engine.scheduler.runner.name == "llama_cpu"
    with caplog.at_level("WARNING"):
        fault = c_int32.in_dll(kernels, "amx_emulation_fault")
        fault.value = 1
        engine, found = serve()
        fault.value = 0
    assert "The AMX path is off: with the base its logits lie" in caplog.text
    assert engine.scheduler.runner.name == "llama_cpu" and found == expected
    used = kernel_library()
    assert used is not None and used._name == library.find_library("_avx512bf16")


def test_kernels_for_amx_that_were_not_compiled_are_not_missed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_emulation(monkeypatch, Path())
    found = library.find_library
    monkeypatch.setattr(
        library, "find_library", lambda name: None if name == library.AMX else found(name)
    )
    kernels = kernel_library()
    assert kernels is not None and kernels._name == found("_avx512bf16") and not caplog.records
