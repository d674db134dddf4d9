"""Ensures that one cycle runs at a time in a home."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from feedback.settings import Home


@contextmanager
def cycle_lock(home: Home) -> Iterator[bool]:
    """Hold the home's cycle lock; yields False when another process has it.

    It is an flock, which the kernel releases with its process, however that dies: no stale lock
    file has to be removed by hand.
    """
    with home.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
