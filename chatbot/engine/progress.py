"""Tells an engine that works from one that stands still, also in another process.

The engine counts each layer, each step and, while it has nothing to do, each half second. Who
watches it compares the counts and, between two of them, what its thread gets of the CPU.
"""

import ctypes
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

MAX_GAP_SECONDS = 2.0
"""So much counts at most between two looks: the watching process may have been stopped itself."""
BUSY_SHARE = 0.05
"""A second of a thread that computes, or that waits for a CPU, counts so much of one that stands
still: a layer may take minutes on a busy machine, but not for ever."""


class Progress:
    """Counts what an engine does, in memory that another process can share."""

    def __init__(self, memory: Any = None) -> None:
        """``memory`` is an array of two `ctypes.c_int64`; without one it is this process's own."""
        self._memory = (ctypes.c_int64 * 2)() if memory is None else memory

    @property
    def count(self) -> int:
        """Return what has been counted so far."""
        return int(self._memory[0])

    @property
    def thread_id(self) -> int:
        """Return the system's id of the thread that counts; 0 while the engine is being loaded."""
        return int(self._memory[1])

    @property
    def address(self) -> int:
        """Return the address of the count, which native code may increase as well."""
        return ctypes.addressof(self._memory)

    def advance(self) -> None:
        """Count one more layer, step or look for work."""
        self._memory[0] += 1

    def begin_on_this_thread(self) -> None:
        """Say that the engine is loaded and that this thread does its work from now on."""
        self._memory[1] = threading.get_native_id()
        self.advance()


class ThreadActivity(NamedTuple):
    """Describes what a thread, or a whole process, has got of the machine."""

    runnable: bool
    """Whether it computes, or would if the machine were not busy."""
    cpu_ticks: int
    page_reads: int
    """How many pages it has waited for to be read from the disk."""


def read_activity(process_id: int, thread_id: int = 0) -> ThreadActivity | None:
    """Return the activity of a thread, 0: of the whole process; None where the system (not Linux)
    does not say, or once it has ended. Source: proc(5)."""
    folder = f"/proc/{process_id}/task/{thread_id}" if thread_id else f"/proc/{process_id}"
    try:
        text = Path(folder, "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return ThreadActivity(
        runnable=fields[0] == "R",
        cpu_ticks=int(fields[11]) + int(fields[12]),
        page_reads=int(fields[9]),
    )


class ProgressWatch:
    """Measures for how long an engine has stood still; look at least once a second."""

    def __init__(self, progress: Progress, process_id: int) -> None:
        self.still_seconds = 0.0
        """For how long it had stood still at the last look; 0 while it works."""
        self._progress, self._process_id = progress, process_id
        self._looked_at = time.monotonic()
        self._count, self._activity = -1, read_activity(process_id)

    def look(self) -> float:
        """Look at the engine now, and return `still_seconds`."""
        now, progress = time.monotonic(), self._progress
        passed = min(now - self._looked_at, MAX_GAP_SECONDS)
        count, activity = progress.count, read_activity(self._process_id, progress.thread_id)
        works = activity is None or activity.runnable or activity != self._activity
        if count != self._count or (works and not progress.thread_id):
            self.still_seconds = 0.0
        else:
            self.still_seconds += passed * BUSY_SHARE if works else passed
        self._looked_at, self._count, self._activity = now, count, activity
        return self.still_seconds
