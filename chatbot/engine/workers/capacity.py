"""How many workers a machine bears."""

import os
from pathlib import Path

from chatbot.engine.workers.messages import Ready
from chatbot.model.base import FLOAT32_MAX_PARAMETERS

MOST = 4
"""Unless the settings say otherwise: each holds the weights."""
LIMIT = ("max", "current")
"""A container's memory, as Linux tells it."""


def how_many(ready: Ready, cores: int, free: int) -> int:
    """Workers that so many cores and free bytes bear. A small model needs no more than one: what
    is left of the cores is there for HTTP, and for a cycle. One that grows makes more of a second
    core than another worker would, which reads all weights a second time."""
    if ready.device != "cpu" or ready.parameters <= FLOAT32_MAX_PARAMETERS:
        return 1
    room = 1 + free // (2 * ready.weights)  # the first has its weights, half of the rest is left
    each = 2 * ready.threads if ready.grows else ready.threads
    return max(1, min(cores // each, room, MOST))


def free_bytes() -> int:
    """Memory that nobody uses, of the machine and of the container around this process."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        most, used = (Path(f"/sys/fs/cgroup/memory.{part}").read_text() for part in LIMIT)
        return min(free, int(most) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
