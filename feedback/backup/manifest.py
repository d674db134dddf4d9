"""Defines the manifest of an archive, and verifies an archive by it: the only code that does.

    with file.open("rb") as stream:
        manifest = verify(stream, file)          # ArchiveError names the file that is wrong

An archive is a tar of folders and files below ``home/``, and the manifest as its last member, so
that it is written and verified in one pass. The manifest's own SHA-256 is in its header.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from feedback.db.migrations import SCHEMA_VERSION
from feedback.db.migrations.schema_versions import talkback_version
from feedback.errors import TalkbackError

MANIFEST = "manifest.json"
PREFIX = "home/"
"""What the names of all other members begin with."""
MANIFEST_HASH = "TALKBACK.sha256"
"""The field of the manifest's header that has its hash."""
FORMAT = 1
"""The number of this layout; a reader refuses a higher one."""
CHUNK_BYTES = 1 << 20
MOST_MANIFEST_BYTES = 1 << 28


class ArchiveError(TalkbackError):
    """Reports an archive that is damaged, cut, or holds what it should not; names the file."""


class ArchivedFile(BaseModel):
    """Describes a file: bytes, SHA-256 in hexadecimal digits, and permissions."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    size: NonNegativeInt
    sha256: str
    mode: NonNegativeInt


class Manifest(BaseModel):
    """Lists all that an archive holds, by the path in the home, and what can read it."""

    format: int
    talkback: str
    """The version that wrote the archive."""
    schema_version: int
    created_at: str
    mode: NonNegativeInt
    """The permissions of the home itself."""
    folders: dict[str, NonNegativeInt]
    """Permissions by path; a folder comes before what is in it."""
    files: dict[str, ArchivedFile]


class Member:
    """Holds a safe path in the home, or that of the manifest, and its content."""

    def __init__(self, info: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        self.path, self.size, self.modified = info.name.removeprefix(PREFIX), info.size, info.mtime
        self.is_manifest = info.name == MANIFEST
        self.sha256 = info.pax_headers.get(MANIFEST_HASH)
        self._content = content

    @property
    def is_folder(self) -> bool:
        """Tell whether this is a folder, which has no content."""
        return self._content is None

    def copy(self, write: Callable[[bytes], object] = lambda chunk: None) -> tuple[int, str]:
        """Pass the content on; return its size in bytes and its SHA-256."""
        digest, size = hashlib.sha256(), 0
        while self._content is not None and (chunk := self._content.read(CHUNK_BYTES)):
            write(chunk)
            digest.update(chunk)
            size += len(chunk)
        return size, digest.hexdigest()


def verify(stream: BinaryIO, file: Path) -> Manifest:
    """Read an archive from beginning to end and return its manifest.

    Raises ArchiveError for a member that is damaged, missing or more than the manifest names, for
    one that is no plain file or folder below the home, and for an archive of a newer Talkback.
    """
    files: dict[str, tuple[int, str]] = {}
    folders: list[str] = []
    manifest: Manifest | None = None
    last = "its beginning"
    with read_members(stream, file) as members:
        for member in members:
            if manifest is not None:
                raise ArchiveError(f"{file}: {member.path} is not in its manifest, but after it")
            if member.is_manifest:
                manifest = _read_manifest(member, file)
            elif member.path in files or member.path in folders:
                raise ArchiveError(f"{file}: {member.path} is in it twice")
            elif member.is_folder:
                folders.append(member.path)
            else:
                files[member.path] = member.copy()
            last = member.path
    if manifest is None:
        raise ArchiveError(
            f"{file} is cut or damaged after {last}: its manifest is missing; take another archive"
        )
    _compare(manifest, files, folders, file)
    return manifest


@contextmanager
def read_members(stream: BinaryIO, file: Path) -> Iterator[Iterator[Member]]:
    """Yield the members of an archive in their order; ArchiveError for an unsafe or cut one."""
    last = "its beginning"

    def read(archive: tarfile.TarFile) -> Iterator[Member]:
        nonlocal last
        for info in archive:
            _check_member(info, file)
            last = info.name
            yield Member(info, archive.extractfile(info))

    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            yield read(archive)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArchiveError(f"{file} is cut or damaged at {last}: {error}") from error


def _check_member(info: tarfile.TarInfo, file: Path) -> None:
    """Raise ArchiveError for what could be written outside of the home, or is no file."""
    path = PurePosixPath(info.name)
    inside = (info.name.startswith(PREFIX) and info.name != PREFIX) or info.name == MANIFEST
    if not inside or ".." in path.parts or str(path) != info.name or "\0" in info.name:
        raise ArchiveError(f"{file}: the name {info.name!r} leads out of the home; refused")
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or info.issparse():
        raise ArchiveError(f"{file}: {info.name} is neither a file nor a folder; refused")


def _read_manifest(member: Member, file: Path) -> Manifest:
    """Read the manifest; one of a newer Talkback is refused with the version that it needs."""
    parts: list[bytes] = []
    if member.size > MOST_MANIFEST_BYTES or member.copy(parts.append)[1] != member.sha256:
        raise ArchiveError(f"{file}: its {MANIFEST} is damaged; take another archive")
    try:
        raw = json.loads(b"".join(parts))
        check_readable(raw, file)
        return Manifest.model_validate(raw)
    except (ValueError, ValidationError) as error:
        raise ArchiveError(f"{file}: its {MANIFEST} is damaged: {error}") from error


def check_readable(raw: object, file: Path) -> None:
    """Raise ArchiveError where this Talkback is too old for what an archive holds."""
    if not isinstance(raw, dict):
        raise ArchiveError(f"{file}: its {MANIFEST} is damaged: it is no table")
    format, schema = raw.get("format"), raw.get("schema_version")
    newer = isinstance(format, int) and format > FORMAT
    if newer or (isinstance(schema, int) and schema > SCHEMA_VERSION):
        raise ArchiveError(
            f"{file} holds schema {schema}, and this Talkback ({talkback_version()}) knows "
            f"{SCHEMA_VERSION}: install Talkback {raw.get('talkback')} or newer, then restore it"
        )


def _compare(
    manifest: Manifest, files: dict[str, tuple[int, str]], folders: list[str], file: Path
) -> None:
    """Raise ArchiveError for the first difference between an archive and its manifest."""
    for path, (size, sha256) in files.items():
        named = manifest.files.get(path)
        if named is None:
            raise ArchiveError(f"{file}: {path} is not in its manifest; somebody has added it")
        if (named.size, named.sha256) != (size, sha256):
            raise ArchiveError(f"{file}: {path} in it is damaged; take another archive")
        _check_parent(path, manifest, file)
    for path in folders:
        if path not in manifest.folders:
            raise ArchiveError(f"{file}: {path}/ is not in its manifest; somebody has added it")
        _check_parent(path, manifest, file)
    missing = [*(manifest.files.keys() - files.keys()), *(manifest.folders.keys() - set(folders))]
    if missing:
        raise ArchiveError(f"{file}: {min(missing)} is missing in it; take another archive")


def _check_parent(path: str, manifest: Manifest, file: Path) -> None:
    parent = str(PurePosixPath(path).parent)
    if parent != "." and parent not in manifest.folders:
        raise ArchiveError(f"{file}: {path} is in no folder of its manifest")
