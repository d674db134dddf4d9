"""Tells by which kernels and weights a home's server computes; imports no torch.

The server writes it whenever an adapter begins to speak; `talkback status` reads it.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feedback.ids import now
from feedback.publish import replace_file
from feedback.settings import Home

log = logging.getLogger("talkback")

KERNELS = Path(__file__).parent / "local" / "kernels"
RUNNERS = {
    "int8": "native kernels",
    "llama_cpu": "native kernels",
    "llama_torch": "torch, with products of ours",
    "transformers": "transformers' own forward",
}
"""The name of a runner -> what it computes by."""


def describe_engine(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Return by what the engine with these stats computes, and why not by something faster."""
    runner = stats.get("runner")
    return {
        "runner": RUNNERS.get(runner, "other servers") if runner else "other servers",
        "device": stats.get("device"),
        "int8": bool(stats.get("int8")),
        "notes": list(stats.get("notes", [])),
    }


def record_engine(home: Home, described: Mapping[str, Any]) -> None:
    """Write down how this server computes from now on; a disk that refuses is logged."""
    served = {"process": os.getpid(), "since": now(), **described}
    try:
        replace_file(home.engine, json.dumps(served))
    except OSError as error:
        log.warning("How the engine computes is not shown by talkback status: %s", error)


def read_engine(home: Home) -> dict[str, Any]:
    """Return the kernels there are, and how the server computes, or the last one did."""
    status: dict[str, Any] = {"kernels": ", ".join(compiled_kernels()) or "none were compiled"}
    try:
        served = json.loads(home.engine.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return status | {"serves": "no server has run yet"}
    notes = " ".join(served["notes"])
    runs = _is_running(served["process"])
    return status | {
        "serves" if runs else "served last": served["runner"],
        "on": served["device"],
        "int8": "on" if served["int8"] else "off",
        "since": served["since"],
        **({"because": notes} if notes else {}),
    }


def compiled_kernels() -> list[str]:
    """Return the instruction sets that the kernels of this installation were compiled for."""
    return sorted({file.name.split(".")[0].strip("_") for file in KERNELS.glob("_avx*")})


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
