"""Tells who uses a home: a server shares its lock with other servers, a restore has it alone.

    with use_home(home): ...      # a server, a backup
    with claim_home(home): ...    # what moves the home or its database away; HomeInUseError

The kernel releases the locks with their process, however that ends.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from feedback.cycle_lock import cycle_lock
from feedback.errors import TalkbackError
from feedback.publish import LockError, make_file, try_lock
from feedback.settings import Home

LOCK_ATTEMPTS = 10
ATTEMPT_SECONDS = 0.02


class HomeInUseError(TalkbackError):
    """Reports that another process uses a home; says which kind, and what to do."""


@contextmanager
def use_home(home: Home) -> Iterator[None]:
    """Hold the home in use; HomeInUseError while its content is moved away or put back."""
    file = _lock_current(home.server_lock, shared=True)
    if file is None:
        raise HomeInUseError(f"{home.root} is being restored; start again when that has ended")
    with file:
        yield


@contextmanager
def claim_home(home: Home) -> Iterator[None]:
    """Hold the home alone; HomeInUseError while a server, a backup or a cycle runs on it."""
    file = _lock_current(home.server_lock, shared=False)
    if file is None:
        raise HomeInUseError(
            f"a server or a backup runs on {home.root}; stop the server, then try again"
        )
    with file, cycle_lock(home) as lock:
        if lock is None:
            raise HomeInUseError(
                f"a cycle runs on {home.root}; wait until it has ended (talkback status), then "
                "try again"
            )
        yield


def _lock_current(path: Path, *, shared: bool) -> TextIO | None:
    """Lock the file that has the name ``path`` now, not one that was moved away with its home
    between opening and locking it; None when another process has it."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            make_file(path)
        except OSError as error:
            raise LockError(f"cannot make {path}: {error.strerror}") from error
        file = try_lock(path, shared=shared)
        if file is not None:
            if _is_current(file, path):
                return file
            file.close()
        time.sleep(ATTEMPT_SECONDS)
    return None


def _is_current(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
