"""Runs a stage (``python -m training.train``) as a background process of its own.

Lowest priority and few threads keep the chat beside it usable: two OpenMP threads that spin while
they wait would slow both down tenfold, so they sleep instead.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feedback.errors import TalkbackError

PR_SET_PDEATHSIG = 1
"""Linux: the signal that this process gets when its parent dies (prctl(2))."""
MAX_KEPT_LINES = 20
StageProgress = Callable[[str, str], None]
"""Called with a stage's name and a line about its progress."""


class StageError(TalkbackError):
    """Says that a stage's process failed; the message holds its exit code and last line."""


class StageTimer:
    """Announces each stage of a cycle and measures how many seconds it takes."""

    def __init__(self, on_progress: StageProgress, enter_stage: Callable[[str], object]) -> None:
        self.on_progress = on_progress
        self.enter_stage = enter_stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Record the seconds of the block under `name`; a block that raises is not recorded."""
        self.enter_stage(name)
        self.on_progress(name, "")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)


def run_stage(
    module: str, arguments: list[str], *, threads: int, on_output: Callable[[str], None]
) -> dict[str, Any]:
    """Run ``python -m module`` to its end and return the JSON object that it printed last.

    Each non-blank line of its output goes to `on_output`. Raises StageError when the process fails
    or ends without JSON.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=stage_environment(threads),
        preexec_fn=prepare_child,
    )
    recent = deque[str](maxlen=MAX_KEPT_LINES)
    assert process.stdout is not None
    with process.stdout as lines:
        for line in filter(None, map(str.strip, lines)):
            recent.append(line)
            on_output(line)
    if process.wait() != 0:
        raise StageError(f"{module} ended with {process.returncode}: {last_line(recent)}")
    return find_result(module, recent)


def stage_environment(threads: int) -> dict[str, str]:
    """Return this process's environment, with OpenMP threads that sleep while they wait, and with
    memory of the C library that is kept for the next tensor: to map it anew for each of them takes
    a sixth of the time."""
    return child_environment() | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def child_environment() -> dict[str, str]:
    """Return this process's environment for a ``python -m`` that imports what this one does.

    ``-m`` and ``-c`` put the working folder first, where a user's ``training/`` or ``queue.py``
    would hide ours and Python's own; the safe path of Python leaves it out.
    """
    root, here = str(Path(__file__).parents[1]), os.getcwd()
    path = [entry for entry in map(os.path.abspath, sys.path) if entry != here or entry == root]
    return os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}


def prepare_child() -> None:
    """Lower the child's priority, and have the kernel kill it when its parent dies.

    Runs in the child between fork and exec. A cycle that is killed must not leave a training
    running that the next cycle knows nothing of.
    """
    os.nice(19)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def last_line(lines: deque[str]) -> str:
    """Return the last line of the output: of a traceback, the one that names the error."""
    return lines[-1] if lines else "it said nothing"


def find_result(module: str, lines: deque[str]) -> dict[str, Any]:
    """Return the stage's result: the last line that is a JSON object. Libraries may print more
    after it, as the process ends. Raises StageError when there is none."""
    for line in reversed(lines):
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(result, dict):
            return result
    raise StageError(f"{module} ended without its JSON line, but with {last_line(lines)!r}")
