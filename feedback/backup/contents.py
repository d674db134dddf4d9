"""Decides what of a home is backed up: everything but what `LEFT_OUT` names, folders whole.

    for part in open_parts(home.root): ...

What is added to homes in the future is backed up without a line here.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

LEFT_OUT = {
    ".*": "drafts, and what was moved aside as damaged",
    "*.partial": "unfinished files",
    "*.tmp": "unfinished files",
    "/*.lock": "held by running processes",
    "/browser.key.*": "drafts of the signing key",
    "/talkback.db": "copied in one step, see `database_copy`",
    "/talkback.db-*": "journals of the database, whose content the copy has",
    "/engine.json": "what a running server says of itself",
    "/cycle.json": "what a running cycle says of itself",
}
"""The only things that are not backed up, by name, and why. A slash: only at the top of a home."""

PART_DEPTH = 2
"""How deep a folder lies that is whole or not there: ``adapters/a-3f9c02b1d7e4``."""
ATTEMPTS = 5
ATTEMPT_SECONDS = 0.05


class OpenFile:
    """Holds an open file of a home, by its path in the home, so that it cannot disappear."""

    def __init__(self, path: str, stream: BinaryIO) -> None:
        self.path, self.stream = path, stream
        self.stat = os.fstat(stream.fileno())


class Part:
    """Holds what is backed up together: folders with their permissions, and open files."""

    def __init__(self) -> None:
        self.folders: dict[str, int] = {}
        """Permissions by path in the home."""
        self.files: list[OpenFile] = []


def is_left_out(path: str) -> bool:
    """Tell whether a path within a home is not backed up."""
    top, name = "/" not in path, path.rpartition("/")[2]
    return any(
        top and fnmatch(name, pattern[1:]) if pattern[0] == "/" else fnmatch(name, pattern)
        for pattern in LEFT_OUT
    )


def has_content(root: Path) -> bool:
    """Tell whether a home holds any file that would be backed up, or its database."""
    if (root / "talkback.db").exists():
        return True
    for folder, folders, files in os.walk(root):
        inner = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not is_left_out((inner / name).as_posix())]
        if any(not is_left_out((inner / name).as_posix()) for name in files):
            return True
    return False


def open_parts(root: Path) -> Iterator[Part]:
    """Open the parts of a home one after the other; each is closed as the next one is asked for.

    Folders of a stage's results are opened whole: one that is removed meanwhile is left out, and
    what is opened can be read to its end. Links are followed. Raises OSError for what cannot be
    read.
    """
    yield from _open_below(root, "", 1)


def _open_below(root: Path, folder: str, depth: int) -> Iterator[Part]:
    for path, is_folder in _list(root, folder):
        if is_folder and depth < PART_DEPTH:
            part = Part()
            part.folders[path] = _mode(root / path)
            yield part
            yield from _open_below(root, path, depth + 1)
            continue
        with _open_whole(root, path, is_folder) as opened:
            if opened is not None:
                yield opened


@contextmanager
def _open_whole(root: Path, path: str, is_folder: bool) -> Iterator[Part | None]:
    """Open a file, or a folder with all that is in it; None when it is gone."""
    for _ in range(ATTEMPTS):
        with ExitStack() as streams:
            part = Part()
            try:
                names = _walk(root, path) if is_folder else [(path, False)]
                for name, inner_folder in names:
                    if inner_folder:
                        part.folders[name] = _mode(root / name)
                    elif stream := _open_regular(root / name):
                        part.files.append(OpenFile(name, streams.enter_context(stream)))
                whole = not is_folder or names == _walk(root, path)
            except FileNotFoundError:
                whole = False
            if whole:
                yield part
                return
        if not (root / path).exists():
            break
        time.sleep(ATTEMPT_SECONDS)  # until who removes the folder is done with it
    yield None


def _walk(root: Path, path: str, above: tuple[str, ...] = ()) -> list[tuple[str, bool]]:
    """List a folder and all below it, folders before what is in them."""
    real = os.path.realpath(root / path)
    if real in above:  # a link that leads back to where it is
        return []
    found = [(path, True)]
    for name, is_folder in _list(root, path):
        found += _walk(root, name, (*above, real)) if is_folder else [(name, False)]
    return found


def _list(root: Path, folder: str) -> list[tuple[str, bool]]:
    """List what is backed up of one folder: the paths in the home, and which are folders."""
    with os.scandir(root / folder) as entries:
        named = [(f"{folder}/{entry.name}".lstrip("/"), entry) for entry in entries]
        return sorted((path, entry.is_dir()) for path, entry in named if not is_left_out(path))


def _open_regular(file: Path) -> BinaryIO | None:
    """Open a regular file; None for sockets, pipes and devices, which hold nothing to keep."""
    if not stat.S_ISREG(file.stat().st_mode):
        return None
    return file.open("rb")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
