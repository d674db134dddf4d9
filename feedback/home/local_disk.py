"""Ensures that a home lies where SQLite may write it: on a disk of this machine, with real locks.

    check_local_disk(home)        # DiskError: /mnt/home is on nfs4 ...

Over a network SQLite's locks and its shared memory (WAL) fail without a word: two processes write
at once, and the database is torn. What a home may lie on is judged by two things:

- **The file system's type**, by ``/proc/self/mountinfo``. Those that keep their files on this
  machine pass. FUSE, NFS, CIFS, 9p and any that is unknown are refused: what is behind them cannot
  be seen. Except at ``/``: a container's own root may be 9p (gVisor), virtiofs (Kata) or
  fuse-overlayfs (Podman without root), which serves no other machine; only what is made for many
  machines is refused there, too. Where there is no ``/proc`` (macOS), locks alone decide.
- **Locks, tried out**: a process of its own is refused the lock that this one holds.

``[storage] trust_file_system = true``, or ``TALKBACK_STORAGE_TRUST_FILE_SYSTEM=1``, lets a type
pass; without locks no home is used.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar, NamedTuple

from feedback.errors import TalkbackError
from feedback.settings import Home, Settings

LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "reiserfs", "nilfs2"}
    | {"bcachefs", "ecryptfs", "overlay", "aufs", "tmpfs", "ramfs"}
)
"""File systems whose files lie on this machine, in the kernel's hands."""

SHARED = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "gpfs", "beegfs"}
    | {"ocfs2", "gfs2", "orangefs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs"}
    | {"fuse.gcsfuse", "fuse.juicefs"}
)
"""File systems of many machines, refused as a root, too."""

CHILD = """import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(3)
"""
CHILD_SECONDS = 20


class DiskError(TalkbackError):
    """Reports a home on a file system that may lose its database; names type and remedy."""


class StorageSettings(Settings):
    """Holds ``[storage]`` of talkback.toml: where the home may lie."""

    table: ClassVar[str] = "storage"

    trust_file_system: bool = False
    """Whether the home is used in place on a file system that is not known to be this machine's
    own. Over a network, SQLite may lose all of it."""


class Mount(NamedTuple):
    """Names a mounted file system: its id, where it is mounted, and its type."""

    id: str
    point: str
    type: str


def check_local_disk(home: Home) -> None:
    """Raise DiskError where the home's database would not be safe.

    Takes about 15 ms, most of it for the process that tries the lock.
    """
    trusted = StorageSettings.read(home).trust_file_system
    mount = find_mount(home.root)
    if mount is not None and not (trusted or is_local(mount)):
        raise DiskError(
            f"the home {home.root} is on {mount.type} (mounted at {mount.point}), which is not "
            "known as a disk of this machine: over a network SQLite loses data. Name a folder on a "
            "local disk in TALKBACK_HOME, and move the home there with talkback backup and "
            "restore; or, if no other machine writes it, set TALKBACK_STORAGE_TRUST_FILE_SYSTEM=1, "
            "or trust_file_system = true in table [storage] of talkback.toml"
        )
    _check_locks_between_processes(home.root)


def is_local(mount: Mount) -> bool:
    """Tell whether a file system is this machine's own, or the root of this container."""
    return mount.type in LOCAL or (mount.point == "/" and mount.type not in SHARED)


def find_mount(folder: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> Mount | None:
    """Return the mounted file system that a folder is on; None where the system does not tell.

    The kernel tells a mount's id for an open file; where it does not (gVisor), it is the mount
    with the longest path above the folder, of several at one path the last.
    """
    try:
        mounts = [_parse_mount(line) for line in mountinfo.read_text().splitlines()]
    except OSError:
        return None
    if id := _mount_id(folder):
        for mount in mounts:
            if mount.id == id:
                return mount
    above = [mount for mount in mounts if folder.is_relative_to(mount.point)]
    return max(reversed(above), key=lambda mount: len(Path(mount.point).parts), default=None)


def _parse_mount(line: str) -> Mount:
    """Read a line: ``36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda rw``."""
    before, _, after = line.partition(" - ")
    fields = before.split()
    point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
    return Mount(fields[0], point, after.split()[0])


def _mount_id(folder: Path) -> str | None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        text = Path(f"/proc/self/fdinfo/{handle}").read_text()
    except OSError:
        return None
    finally:
        os.close(handle)
    found = re.search(r"^mnt_id:\s*(\d+)", text, re.M)
    return found[1] if found else None


def _check_locks_between_processes(folder: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen = is_locked_for_others(Path(file.name))
    except OSError:  # nothing can be written or locked, which is reported where it matters
        return
    if not seen:
        raise DiskError(
            f"two processes do not see each other's locks in {folder}; name a folder on a local "
            "disk in TALKBACK_HOME"
        )


def is_locked_for_others(file: Path) -> bool:
    """Tell whether another process is refused the file's lock: one is started, and tries.

    True as well where none can be started: nothing is known against the file system then.
    """
    command = [sys.executable, "-I", "-S", "-c", CHILD, str(file)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHILD_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return True
    return done.returncode != 0
