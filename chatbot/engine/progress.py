"""Tells an engine that works from one that stands still, also in another process.

The engine counts each layer, each step and, while it has nothing to do, each half second. Who
watches it compares the counts and, between two of them, what its thread gets of the CPU. A thread
that loads weights is watched by itself, for it may hang while the engine goes on.
"""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

MAX_GAP_SECONDS = 2.0
"""So much counts at most between two looks: the watching process may have been stopped itself."""
BUSY_SHARE = 0.05
"""A second of a thread that computes, or that waits for a CPU, counts so much of one that stands
still: a layer may take minutes on a busy machine, but not for ever."""


class Progress:
    """Counts what an engine does, in memory that another process can share."""

    CELLS = 3

    def __init__(self, memory: Any = None) -> None:
        """``memory`` is an array of `CELLS` `ctypes.c_int64`; without one it is this process's."""
        self._memory = (ctypes.c_int64 * self.CELLS)() if memory is None else memory

    @property
    def count(self) -> int:
        """Return what has been counted so far."""
        return int(self._memory[0])

    @property
    def thread_id(self) -> int:
        """Return the system's id of the thread that counts; 0 while the engine is being loaded."""
        return int(self._memory[1])

    @property
    def loading_thread_id(self) -> int:
        """Return the system's id of the thread that loads weights now; 0 while none does."""
        return int(self._memory[2])

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

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Say that this thread loads weights inside the block; one thread at a time."""
        self._memory[2] = threading.get_native_id()
        try:
            yield
        finally:
            self._memory[2] = 0


class ThreadActivity(NamedTuple):
    """Describes what a thread, or a whole process, has got of the machine."""

    runnable: bool
    """Whether it computes, or would if the machine were not busy."""
    cpu_ticks: int
    page_reads: int
    """How many pages it has waited for to be read from the disk."""
    stopped: bool
    """Whether a signal or a debugger has stopped it."""


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
        stopped=fields[0] in "Tt",
    )


def count_wakeups(process_id: int, thread_id: int) -> int | None:
    """Return how often what a thread waited for has come, such as a part of a file; None where the
    system does not say. Source: proc(5)."""
    try:
        text = Path(f"/proc/{process_id}/task/{thread_id}/status").read_text()
    except OSError:
        return None
    return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


class ProgressWatch:
    """Measures for how long an engine, and a thread that loads for it, have stood still; look at
    least once a second."""

    def __init__(self, progress: Progress, process_id: int) -> None:
        self.still_seconds = 0.0
        """For how long the engine had stood still at the last look; 0 while it works."""
        self.loading_still_seconds = 0.0
        """For how long the thread that loads had; 0 while none does."""
        self._progress, self._process_id = progress, process_id
        self._looked_at = time.monotonic()
        self._count, self._activity = -1, read_activity(process_id)
        self._process = self._activity
        self._load: tuple[object, ...] = ()

    def look(self) -> float:
        """Look at the engine now, and return `still_seconds`."""
        now = time.monotonic()
        passed = min(now - self._looked_at, MAX_GAP_SECONDS)
        process = read_activity(self._process_id)
        self._look_at_loading(passed, process)
        self._look_at_engine(passed, process)
        self._looked_at, self._process = now, process
        return self.still_seconds

    def _look_at_engine(self, passed: float, process: ThreadActivity | None) -> None:
        count, thread = self._progress.count, self._progress.thread_id
        activity = read_activity(self._process_id, thread) if thread else process
        works = _is_active(activity, self._activity)
        loads = not thread and self._progress.loading_thread_id  # which is looked at by itself
        if count != self._count or loads or (works and not thread):
            self.still_seconds = 0.0
        else:
            self.still_seconds += passed * BUSY_SHARE if works else passed
        self._count, self._activity = count, activity

    def _look_at_loading(self, passed: float, process: ThreadActivity | None) -> None:
        """Take what the thread computes and reads for progress, and pages that are read for
        anybody; what other threads compute, perhaps for it, counts as a busy thread does."""
        thread = self._progress.loading_thread_id
        wakeups = count_wakeups(self._process_id, thread) if thread else None
        activity = read_activity(self._process_id, thread)
        load = (thread, wakeups, activity, process.page_reads if process else None)
        if wakeups is None or load != self._load or (activity and activity.runnable):
            self.loading_still_seconds = 0.0
        else:
            works = _is_active(process, self._process)
            self.loading_still_seconds += passed * BUSY_SHARE if works else passed
        self._load = load


def _is_active(now: ThreadActivity | None, before: ThreadActivity | None) -> bool:
    """Tell whether a thread or process computes, has done so since, or may have."""
    return now is None or now.runnable or now != before
