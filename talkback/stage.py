"""Run a stage (``python -m training.train``) as a process of its own, in the background.

Lowest priority and few threads keep the chat beside it usable: two OpenMP threads that spin while
they wait would slow both down tenfold, so they sleep instead.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from feedback.errors import TalkbackError

PR_SET_PDEATHSIG = 1
"""Linux: the signal that this process gets when its parent dies (prctl(2))."""


class StageFailed(TalkbackError):
    """A stage's process ended badly; the message carries its last words."""


def stage(
    module: str, arguments: list[str], *, threads: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run ``module`` to its end; its lines go to ``tell``, its last line is the JSON returned."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        text=True, errors="replace", env=environment(threads), preexec_fn=step_back,
    )  # fmt: skip
    last = deque[str](maxlen=20)
    assert process.stdout is not None
    with process.stdout as lines:
        for line in filter(None, map(str.strip, lines)):
            last.append(line)
            tell(line)
    if process.wait() != 0:
        raise StageFailed(f"{module} ended with {process.returncode}: {last_words(last)}")
    return result(module, last[-1] if last else "")


def environment(threads: int) -> dict[str, str]:
    """This process's environment, with threads that sleep while they wait."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def step_back() -> None:
    """Runs in the child: lowest priority, and no life after a parent that is killed."""
    os.nice(19)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def last_words(lines: deque[str]) -> str:
    """The line that says what went wrong: the last one that is not part of a traceback's frame."""
    return lines[-1] if lines else "it said nothing"


def result(module: str, line: str) -> dict[str, Any]:
    """The stage's answer, from its last line."""
    try:
        answer = json.loads(line)
    except json.JSONDecodeError as error:
        raise StageFailed(f"{module} ended without its JSON line, but with {line!r}") from error
    if not isinstance(answer, dict):
        raise StageFailed(f"{module} answered {answer!r}, not an object")
    return answer
