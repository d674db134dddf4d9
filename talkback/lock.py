"""Ensures that one cycle runs at a time in a home."""

from collections.abc import Iterator
from contextlib import contextmanager

from feedback.publish import try_lock
from feedback.settings import Home


@contextmanager
def cycle_lock(home: Home) -> Iterator[bool]:
    """Hold the home's cycle lock; yields False when another process has it.

    It is an flock, which the kernel releases with its process, however that dies: no stale lock
    file has to be removed by hand.
    """
    file = try_lock(home.lock)
    try:
        yield file is not None
    finally:
        if file is not None:
            file.close()
