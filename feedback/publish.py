"""Publishes folders and files: whole and on the disk, or not at all, with the permissions of their
folder; and locks between processes.

    draft = Path(tempfile.mkdtemp(dir=out))   # fill it, then
    publish_folder(draft, out / name)

A name that another process can see always stands for finished content, also after a power cut:
the content is flushed to the disk before the rename, and the rename after it.

A home is its owner's alone, whatever the umask, and its group's where somebody has set it up so
(``docs/scale.md``): all that is made in it takes the permissions of the folder that it is made in.
"""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TextIO

from feedback.errors import TalkbackError, describe_os_error, name_file


class LockError(TalkbackError):
    """Reports a file that cannot be locked; names it and the remedy."""


def private_mode(folder: Path) -> int:
    """Return the permissions of what is made in ``folder`` for its owner, and for its group where
    the folder is shared with it: by setgid, or by being closed to others. (0755, which ``mkdir``
    leaves, is nobody's decision.)"""
    mode = stat.S_IMODE(folder.stat().st_mode)
    shared = mode & stat.S_ISGID or not mode & stat.S_IRWXO
    return stat.S_IRWXU | (mode & (stat.S_ISGID | stat.S_IRWXG) if shared else 0)


def published_mode(folder: Path) -> int:
    """Return the permissions of what is published in ``folder``: ``private_mode``, and everybody
    may read it where everybody may read the folder, as in homes of old."""
    return private_mode(folder) | folder.stat().st_mode & 0o055


def make_folder(folder: Path, mode: int | None = None) -> None:
    """Make a folder unless it is there, with the permissions of what is published beside it."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        folder.chmod(published_mode(folder.parent) if mode is None else mode)


def make_file(file: Path) -> None:
    """Make an empty file unless it is there, which others may not read or write."""
    try:
        file.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return
    file.chmod(private_mode(file.parent) & 0o660)


def publish_folder(
    draft: Path, final: Path, check: Callable[[Path], object] = lambda folder: None
) -> Path:
    """Rename a finished draft to its final name, durably; return that name.

    Both have to be on one file system. A folder that has the name already stays, and the draft is
    deleted: names stand for content, so that both hold the same. One about which ``check`` raises
    TalkbackError is damaged: it is moved aside, to a name that begins with ``.damaged-``.
    """
    if final.exists():
        try:
            check(final)
        except TalkbackError:
            final.rename(Path(tempfile.mkdtemp(prefix=".damaged-", dir=final.parent)) / final.name)
    if not final.exists():
        mode = published_mode(final.parent)
        draft.chmod(mode)
        for path in draft.rglob("*"):
            path.chmod(mode if path.is_dir() else mode & 0o666)
            sync(path)
        sync(draft)
        try:
            draft.rename(final)
        except OSError:
            if not final.exists():  # else another process was first
                raise
        else:
            sync(final.parent)
            return final
    shutil.rmtree(draft)
    return final


def replace_file(file: Path, text: str) -> None:
    """Write a text as a file, durably; who reads it meanwhile finds the old text or the new."""
    handle, draft = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with open(handle, "w", encoding="utf-8") as stream:  # closing it may fail as well
            stream.write(text)
            stream.flush()
            os.fsync(handle)
            os.fchmod(handle, published_mode(file.parent) & 0o666)
    except OSError as error:
        os.unlink(draft)
        raise name_file(error, file) from error
    Path(draft).replace(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(path: Path, *, shared: bool = False) -> TextIO | None:
    """Return the file at ``path``, locked until it is closed; None when another process has it.

    A shared lock needs a file that is there and that one may read; many can have it at once. The
    lock (``flock``) is the kernel's: it goes with its process, however that ends, and no stale file
    has to be removed by hand. Raises LockError for a file that cannot be locked.
    """
    try:
        if not shared:
            make_file(path)
        file = path.open("r" if shared else "a")
    except OSError as error:
        raise LockError(f"cannot open the lock {describe_os_error(error)}") from error
    try:
        acquired = _lock(file, shared)
    except OSError as error:
        file.close()
        raise _no_locks(path, error) from error
    if not acquired:
        file.close()
        return None
    return file


def check_locks(folder: Path) -> None:
    """Raise LockError where files of this folder cannot be locked by their bytes, as SQLite does:
    it would take that for a lock that another holds."""
    if sys.platform == "win32":
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            _lock_bytes(probe, folder)
    except OSError:  # a folder where nothing can be written, which is reported where it matters
        return


def _lock_bytes(file: IO[bytes], folder: Path) -> None:
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _no_locks(folder, error) from error


def _no_locks(path: Path, error: OSError) -> LockError:
    """Return the error of a file system, of a network or a container, that has no locks."""
    return LockError(
        f"cannot lock {path}: {error.strerror}; put the home on a file system that has locks"
    )


def _lock(file: TextIO, shared: bool) -> bool:
    """Lock a file as the system can; return False when another process has it. Raises OSError."""
    if sys.platform == "win32":  # which has no shared locks of this kind
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
