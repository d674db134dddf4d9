"""Ensures that one cycle at a time runs in a home, and tells which one does.

with cycle_lock(home) as lock: ...     # None: another cycle runs
read_running_cycle(home)               # RunningCycle(stage="train", ...), or None
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from feedback.ids import now
from feedback.publish import replace_file, try_lock
from feedback.settings import Home

LOCK_ATTEMPTS = 10
"""How often a cycle tries to take the lock: for a moment each, readers share it."""
ATTEMPT_SECONDS = 0.02


@dataclass(frozen=True)
class RunningCycle:
    """Tells since when a cycle runs, which stage it is in, and since when."""

    started_at: str
    stage: str
    stage_started_at: str


class CycleLock:
    """Publishes the stage of the cycle that holds the lock, for `read_running_cycle`."""

    def __init__(self, home: Home) -> None:
        self._file = home.running_cycle
        self._started_at = now()
        self.enter_stage("start")

    def enter_stage(self, stage: str) -> None:
        """Record that a stage begins."""
        running = RunningCycle(self._started_at, stage, now())
        replace_file(self._file, json.dumps(asdict(running)))


@contextmanager
def cycle_lock(home: Home) -> Iterator[CycleLock | None]:
    """Hold the home's cycle lock; yields None when another process has it."""
    file = try_lock(home.lock)
    for _ in range(LOCK_ATTEMPTS - 1):
        if file is not None:
            break
        time.sleep(ATTEMPT_SECONDS)
        file = try_lock(home.lock)
    if file is None:
        yield None
        return
    with file:
        yield CycleLock(home)


def read_running_cycle(home: Home) -> RunningCycle | None:
    """Return the cycle that runs now, None when none does.

    It runs as long as it holds its lock, which the kernel releases with its process: what a killed
    cycle has written about itself counts no more.
    """
    if not home.lock.exists():
        return None
    file = try_lock(home.lock, shared=True)
    if file is not None:
        file.close()
        return None
    try:
        return RunningCycle(**json.loads(home.running_cycle.read_text(encoding="utf-8")))
    except FileNotFoundError:  # the first cycle of this home is about to write it
        return None
