"""Exchanges the names of two folders at once: at every moment both are there, and both whole."""

import ctypes
import errno
import os
import sys
import tempfile
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
"""Flag of renameat2(2)."""
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def swap_folders(first: Path, second: Path) -> None:
    """Exchange two folders of one file system. Raises OSError, with both as they were.

    Where the system has no exchange, two renames do it: killed between them, ``second`` is at a
    name beside it that begins with its own.
    """
    code = _exchange(first, second)
    if code == 0:
        return
    if code not in UNSUPPORTED:
        raise OSError(code, os.strerror(code), str(second))
    between = Path(tempfile.mkdtemp(prefix=f"{second.name}.replaced-", dir=second.parent))
    second.rename(between / second.name)
    try:
        first.rename(second)
    except BaseException:
        (between / second.name).rename(second)
        raise
    (between / second.name).rename(first)
    between.rmdir()


def _exchange(first: Path, second: Path) -> int:
    """Return 0, or the number of the error that renameat2 gives."""
    if sys.platform != "linux":
        return errno.ENOSYS
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return errno.ENOSYS
    names = os.fsencode(first), os.fsencode(second)
    if renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return 0
    return ctypes.get_errno()
