"""Measures what this machine offers: CPU cores, and memory."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUP_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))
CGROUP_V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
"""The files of a cgroup that hold its limit and its usage of memory in bytes, and the fields of
memory.stat with the part of the usage that the kernel takes back when it is short of memory."""


def available_cores() -> int:
    """Return how many CPU cores this process may run on."""
    return len(os.sched_getaffinity(0))


def available_bytes(root: Path = Path("/"), *, swap: bool = False) -> int:
    """Return how many bytes of memory this process can still get: of the machine, of every
    container (cgroup) around it, and of its own limit (``ulimit -v``).

    What the kernel would take back from its caches counts, and with ``swap`` what it would swap.
    """
    process = root / "proc/self"
    limits = [_machine_bytes(root, swap), *_cgroup_bytes(root, process), *_own_limit(process)]
    return max(0, min(limits))


def _machine_bytes(root: Path, swap: bool) -> int:
    fields = _read_fields(root / "proc/meminfo", r"(\w+): +(\d+) kB")
    if "MemAvailable" not in fields:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 1024 * (fields["MemAvailable"] + (fields.get("SwapFree", 0) if swap else 0))


def _cgroup_bytes(root: Path, process: Path) -> Iterator[int]:
    """Yield what is left in each cgroup that this process is in, and in those around it."""
    for line in _read_text(process / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        files = CGROUP_V1 if controllers else CGROUP_V2
        mount = root / "sys/fs/cgroup" / controllers
        inside = mount / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(mount):
                yield from _left_in_cgroup(folder, *files)


def _left_in_cgroup(
    folder: Path, limit: str, usage: str, reclaimable: tuple[str, ...]
) -> Iterator[int]:
    """Yield the bytes that are left in a cgroup; nothing where it has no limit ("max")."""
    most, used = (_read_text(folder / name).strip() for name in (limit, usage))
    if most.isdigit() and used.isdigit():
        fields = _read_fields(folder / "memory.stat", r"(\w+) (\d+)")
        yield int(most) - int(used) + sum(fields.get(name, 0) for name in reclaimable)


def _own_limit(process: Path) -> Iterator[int]:
    if sys.platform == "win32":
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield limit - 1024 * _read_fields(process / "status", r"(\w+):\s+(\d+) kB")["VmSize"]


def _read_fields(file: Path, pattern: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(pattern, _read_text(file))}


def _read_text(file: Path) -> str:
    """Return a file of the kernel's, "" where there is none or it is not ours to read."""
    try:
        return file.read_text()
    except OSError:
        return ""
