"""Defines the base class of errors that a user can mend; the CLI shows them as one line."""

import errno
from pathlib import Path

REMEDIES = {
    errno.ENOENT: "put it there, or name another",
    errno.EACCES: "let this user read it, and write it where it is written",
    errno.EPERM: "let this user read it, and write it where it is written",
    errno.EROFS: "the file system is read-only: mount it writable, or move the home",
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.EFBIG: "raise this user's limit of file sizes (ulimit -f)",
    errno.EIO: "check the disk",
}
"""What to do about an error of the operating system, by its number."""


class TalkbackError(Exception):
    """Reports bad input or something missing; the message names the value and the remedy."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, which may run over many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def describe_os_error(error: OSError) -> str:
    """Return the file, what the operating system says of it, and the remedy, in one line."""
    file = f"{error.filename}: " if error.filename else ""
    remedy = REMEDIES.get(error.errno or 0)
    return f"{file}{error.strerror or error}{f'; {remedy}' if remedy else ''}"


def name_file(error: OSError, file: Path) -> OSError:
    """Return the error with the file that it is about: writing and flushing do not name it."""
    return OSError(error.errno, error.strerror, str(error.filename or file))
