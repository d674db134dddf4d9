"""Writes a home into one archive, while a server and a cycle may be running on it.

    manifest = write_archive(home, Path("talkback.tar"))      # verified, 0600, whole or not there

First the database is copied in one step, then come the folders: those that its rows name were whole
before the rows were written. The archive holds people's words and the key that signs their tokens.
"""

import hashlib
import io
import os
import sqlite3
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from feedback.backup.contents import OpenFile, open_parts
from feedback.backup.manifest import (
    CHUNK_BYTES,
    FORMAT,
    MANIFEST,
    MANIFEST_HASH,
    PREFIX,
    ArchivedFile,
    Manifest,
    verify,
)
from feedback.db.database_copy import copy_database, find_damage, read_schema
from feedback.db.migrations import SCHEMA_VERSION
from feedback.db.migrations.schema_versions import talkback_version
from feedback.errors import TalkbackError, name_file
from feedback.home.in_use import use_home
from feedback.ids import now
from feedback.publish import sync
from feedback.settings import Home


class BackupError(TalkbackError):
    """Reports a home that cannot be backed up, or an archive that cannot be written there."""


def write_archive(home: Home, file: Path) -> Manifest:
    """Back up a home into the new file, and return what it holds, read back from the disk.

    Raises BackupError, HomeInUseError while it is being restored, OSError.
    """
    file = file.absolute()
    _check_target(home, file)
    with (
        use_home(home),
        _open_database_copy(home) as database,
        tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as scratch,
    ):
        draft = Path(scratch) / "archive"
        try:
            with open(draft, "xb", opener=open_private) as stream:
                _write(home, database, stream)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise name_file(error, file) from error
        with draft.open("rb") as written:
            manifest = verify(written, file)
        _check_target(home, file)
        draft.rename(file)
        sync(file.parent)
    return manifest


def _check_target(home: Home, file: Path) -> None:
    """Raise BackupError where there is nothing to back up, or no room for the archive's name."""
    if not home.db.exists():
        raise BackupError(f"{home.root} has no {home.db.name}: nothing to back up; name a home")
    if os.path.lexists(file):
        raise BackupError(f"{file} exists and is kept; name another file, or move it away")
    if not file.parent.is_dir():
        raise BackupError(f"there is no folder {file.parent}; make it, or name another file")
    if file.parent.resolve().is_relative_to(home.root):
        raise BackupError(
            f"{file} is in the home {home.root}, and would be lost with it; name a file elsewhere"
        )


def open_private(name: str, flags: int) -> int:
    """Open a file for `open`; a new one is its owner's alone."""
    return os.open(name, flags, 0o600)


@dataclass(frozen=True)
class DatabaseCopy:
    """Holds an open copy of a database, and its schema."""

    stream: BinaryIO
    schema: int


@contextmanager
def _open_database_copy(home: Home) -> Iterator[DatabaseCopy]:
    """Copy the database and check the copy.

    It is made on the home's disk, for where archives are kept SQLite may find no locks, and has no
    name once it is open: no kill can leave it there.
    """
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=home.root) as folder:
        copy = Path(folder) / home.db.name
        schema = _copy_database(home, copy)
        stream = copy.open("rb")
    with stream:
        yield DatabaseCopy(stream, schema)


def _copy_database(home: Home, copy: Path) -> int:
    """Copy the database and check the copy; return its schema."""
    try:
        copy_database(home.db, copy)
        schema, damage = read_schema(copy), find_damage(copy)
    except sqlite3.Error as error:
        raise BackupError(f"cannot copy {home.db}: {error}") from error
    if damage:
        raise BackupError(f"{home.db} is damaged: {damage}; restore an earlier archive")
    if schema > SCHEMA_VERSION:
        raise BackupError(
            f"{home.db} has schema {schema}, this Talkback knows {SCHEMA_VERSION}; back it up with "
            "the newer Talkback that wrote it"
        )
    return schema


def _write(home: Home, database: DatabaseCopy, stream: BinaryIO) -> None:
    """Write members and, last, the manifest that lists them."""
    manifest = Manifest(
        format=FORMAT,
        talkback=talkback_version(),
        schema_version=database.schema,
        created_at=now(),
        mode=stat.S_IMODE(home.root.stat().st_mode),
        folders={},
        files={},
    )
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        copy = OpenFile(home.db.name, database.stream)
        mode = stat.S_IMODE(home.db.stat().st_mode)
        manifest.files[copy.path] = _add_file(archive, copy, mode)
        for part in open_parts(home.root):
            for path, mode in part.folders.items():
                _add_folder(archive, path, mode)
                manifest.folders[path] = mode
            for file in part.files:
                mode = stat.S_IMODE(file.stat.st_mode)
                manifest.files[file.path] = _add_file(archive, file, mode)
        content = manifest.model_dump_json(indent=1).encode()
        info = tarfile.TarInfo(MANIFEST)
        info.size, info.mode = len(content), 0o600
        info.pax_headers = {MANIFEST_HASH: hashlib.sha256(content).hexdigest()}
        archive.addfile(info, io.BytesIO(content))


def _add_folder(archive: tarfile.TarFile, path: str, mode: int) -> None:
    info = tarfile.TarInfo(PREFIX + path)
    info.type, info.mode = tarfile.DIRTYPE, mode
    archive.addfile(info)


def _add_file(archive: tarfile.TarFile, file: OpenFile, mode: int) -> ArchivedFile:
    """Add as many bytes as the file had when it was opened: a log may grow meanwhile."""
    info = tarfile.TarInfo(PREFIX + file.path)
    info.size, info.mtime, info.mode = file.stat.st_size, file.stat.st_mtime, mode
    reader = _HashingReader(file.stream)
    try:
        archive.addfile(info, reader)
    except OSError as error:
        raise name_file(error, Path(file.path)) from error
    return ArchivedFile(size=info.size, sha256=reader.digest.hexdigest(), mode=mode)


class _HashingReader:
    """Reads from a stream, and hashes what it has read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.digest = stream, hashlib.sha256()

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        chunk = self._stream.read(size)
        self.digest.update(chunk)
        return chunk
