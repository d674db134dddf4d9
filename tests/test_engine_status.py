"""How the engine computes, as `talkback status` shows it without a server's help."""

import json
import os
import subprocess
import sys

import pytest

from chatbot.engine.engine_status import (
    compiled_kernels,
    describe_engine,
    read_engine,
    record_engine,
)
from chatbot.engine.local.kernels.library import kernel_library
from chatbot.service import Service
from feedback.settings import Home
from tests.fixtures.command_line import run_talkback
from tests.fixtures.server_process import SERVER_TOML


def test_before_a_server_has_run_the_kernels_are_shown(home: Home) -> None:
    status = json.loads(run_talkback(home, "status", "--json").stdout)["engine"]
    assert status == {
        "kernels": ", ".join(compiled_kernels()) or "none were compiled",
        "serves": "no server has run yet",
    }
    if kernel_library() is not None:
        assert "avx512" in status["kernels"]


@pytest.mark.parametrize("kind", ["torch", "int8"])
def test_what_serves_is_shown_with_the_reason(home: Home, tiny_base: object, kind: str) -> None:
    home.toml.write_text(SERVER_TOML.replace("[engine]", f"[engine]\nkind = '{kind}'"))
    service = Service.open(home, str(tiny_base))
    stats = service.engine.stats()
    shown = json.loads(run_talkback(home, "status", "--json").stdout)["engine"]
    service.close()
    assert shown["int8"] == ("on" if stats["int8"] else "off")
    assert ("native" in shown["serves"]) == (stats["runner"] in ("int8", "llama_cpu"))
    assert shown.get("because", "") == " ".join(stats["notes"])
    assert bool(stats["notes"]) == (kernel_library() is None)


def test_a_server_that_has_ended_is_shown_as_the_last_one(home: Home) -> None:
    notes = ["int8 is off: its kernels take a CPU with AVX-512 and VNNI."]
    stats = {"runner": "llama_torch", "device": "cpu", "int8": False, "notes": notes}
    record_engine(home, describe_engine(stats))
    assert read_engine(home)["serves"] == "torch, with products of ours"
    served = json.loads(home.engine.read_text())
    assert served["process"] == os.getpid()
    home.engine.write_text(json.dumps(served | {"process": 2**22 + 1}))
    ended = read_engine(home)
    assert "serves" not in ended and ended["served last"] == "torch, with products of ours"
    shown = run_talkback(home, "status").stdout
    assert "served last" in shown and "VNNI" in " ".join(shown.split())


def test_the_status_imports_no_torch() -> None:
    code = "import sys; from talkback.cli import app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"
