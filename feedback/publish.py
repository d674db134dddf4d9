"""Publishes folders and files: whole and on the disk, or not at all; and locks between processes.

    draft = Path(tempfile.mkdtemp(dir=out))   # fill it, then
    publish_folder(draft, out / name)

A name that another process can see always stands for finished content, also after a power cut:
the content is flushed to the disk before the rename, and the rename after it.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TextIO


def publish_folder(draft: Path, final: Path) -> Path:
    """Rename a finished draft to its final name, durably; return that name.

    Both have to be on one file system. A folder that has the name already stays, and the draft is
    deleted: names stand for content, so that both hold the same.
    """
    if not final.exists():
        draft.chmod(0o755)  # mkdtemp makes it its owner's alone
        for path in draft.rglob("*"):
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
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=file.parent, prefix=f".{file.name}-", delete=False
    ) as draft:
        draft.write(text)
        draft.flush()
        os.fsync(draft.fileno())
    Path(draft.name).chmod(0o644)
    Path(draft.name).replace(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(path: Path) -> TextIO | None:
    """Return the file at ``path``, locked until it is closed; None when another process has it.

    The lock (``flock``) is the kernel's: it goes with its process, however that ends, and no stale
    file has to be removed by hand.
    """
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
