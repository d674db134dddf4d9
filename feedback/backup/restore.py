"""Brings a home back from an archive: verified first, unpacked beside the home, swapped in at once.

    restored = restore_archive(Path("talkback.tar"), home, replace=True)
    restored.aside              # where the home that was there before is now

Until the swap, which is one rename, nothing of the home has changed: a restore that is killed
leaves a folder whose name begins with a dot beside it, and no more.
"""

import os
import shutil
import sqlite3
import stat
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from feedback.backup.archive import open_private
from feedback.backup.contents import has_content
from feedback.backup.manifest import ArchiveError, Manifest, Member, read_members, verify
from feedback.backup.swap import swap_folders
from feedback.db.database_copy import close_journal
from feedback.errors import TalkbackError, name_file
from feedback.home.in_use import claim_home
from feedback.home.local_disk import check_local_disk
from feedback.ids import now
from feedback.publish import make_folder, sync
from feedback.settings import Home


class RestoreError(TalkbackError):
    """Reports a home that an archive cannot be restored to; says what is in the way."""


@dataclass(frozen=True)
class Restored:
    """Tells what was restored, and where the home that was there before is now, if there was."""

    manifest: Manifest
    aside: Path | None


def restore_archive(file: Path, home: Home, *, replace: bool = False) -> Restored:
    """Restore an archive to ``home``; with ``replace``, a home that is there is moved aside.

    Raises ArchiveError, RestoreError, HomeInUseError, OSError; the home is unchanged then.
    """
    with file.open("rb") as stream, ExitStack() as claimed:
        manifest = verify(stream, file)
        _check_target(home, replace)
        if home.root.exists():
            claimed.enter_context(claim_home(home))
            _check_target(home, replace)
            _check_closed(home)
        make_folder(home.root.parent)
        draft = Path(tempfile.mkdtemp(prefix=f".{home.root.name}-", dir=home.root.parent))
        try:
            _unpack(stream, file, manifest, draft)
            check_local_disk(Home(draft))
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        aside = _swap_in(draft, home)
    return Restored(manifest, aside)


def free_name(path: Path, middle: str) -> Path:
    """Return a name beside ``path`` that nothing has: ``home.middle-20260102-030405``."""
    stamp = now()[:19].replace("-", "").replace(":", "").replace("T", "-")
    name, number = f"{path.name}.{middle}-{stamp}", 1
    while os.path.lexists(found := path.with_name(name if number == 1 else f"{name}-{number}")):
        number += 1
    return found


def _check_target(home: Home, replace: bool) -> None:
    root = home.root
    if not root.exists():
        return
    if not root.is_dir():
        raise RestoreError(f"{root} is a file; name a folder in TALKBACK_HOME")
    if os.path.ismount(root):
        raise RestoreError(
            f"{root} is a mount point, which cannot be swapped; name a folder in it: "
            f"TALKBACK_HOME={root / 'home'}"
        )
    if not replace and has_content(root):
        raise RestoreError(
            f"the home {root} is not empty; --replace moves it aside, or name another in --home"
        )


def _check_closed(home: Home) -> None:
    """Raise RestoreError where another process has the database open that is to be moved aside."""
    try:
        closed = not home.db.exists() or close_journal(home.db)
    except sqlite3.Error:  # it is damaged, which may be why there is an archive to restore
        return
    if not closed:
        raise RestoreError(f"another process has {home.db} open; end it, then try again")


def _unpack(stream: BinaryIO, file: Path, manifest: Manifest, draft: Path) -> None:
    """Write what the manifest names, durably; folders get their permissions when they are full."""
    with read_members(stream, file) as members:
        for member in members:
            if member.is_manifest:
                break
            target = draft / member.path
            if member.is_folder:
                target.mkdir(0o700)
            else:
                _unpack_file(member, manifest, target, file)
    for path, mode in reversed(manifest.folders.items()):
        (draft / path).chmod(mode & 0o2777)
        sync(draft / path)
    draft.chmod(manifest.mode & 0o2777)
    sync(draft)


def _unpack_file(member: Member, manifest: Manifest, target: Path, file: Path) -> None:
    named = manifest.files[member.path]
    try:
        with open(target, "xb", opener=open_private) as written:
            copied = member.copy(written.write)
            os.fchmod(written.fileno(), stat.S_IMODE(named.mode) & 0o777)
            written.flush()
            os.utime(written.fileno(), (member.modified, member.modified))
            os.fsync(written.fileno())
    except OSError as error:
        raise name_file(error, target) from error
    if copied != (named.size, named.sha256):
        raise ArchiveError(f"{file} has changed while it was read, in {member.path}; try again")


def _swap_in(draft: Path, home: Home) -> Path | None:
    """Give the draft the home's name; return where the old home is, None if it held nothing."""
    root = home.root
    if not root.exists():
        draft.rename(root)
        sync(root.parent)
        return None
    kept = has_content(root)
    try:
        swap_folders(draft, root)
    except OSError:
        shutil.rmtree(draft)
        raise
    if not kept:
        shutil.rmtree(draft)  # by now the old home, which holds locks and empty folders
        sync(root.parent)
        return None
    aside = free_name(root, "replaced")
    draft.rename(aside)
    sync(root.parent)
    return aside
