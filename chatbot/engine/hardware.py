"""Measures what this machine offers an engine: CPU cores and free memory."""

import os
from pathlib import Path

CGROUP_FILES = ("max", "current")
"""The cgroup v2 files that hold the limit and the usage of a container's memory, in bytes."""


def available_cores() -> int:
    """Return how many CPU cores this process may run on."""
    return len(os.sched_getaffinity(0))


def free_bytes() -> int:
    """Return the bytes of memory that are free, on the machine and in a container around us."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{part}").read_text() for part in CGROUP_FILES)
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
