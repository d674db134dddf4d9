"""Keeps which revisions of a base are one and the same, and where it was served from last.

A row of the database names the revision of its base: a commit, or a hash of the files. Files are
saved anew and folders move, so revisions of the same identity (``Base.identity``) are one base.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chatbot.model.base_name import canonical_name, find_folder
from feedback.errors import TalkbackError
from feedback.ids import now
from feedback.store import Store

if TYPE_CHECKING:
    from chatbot.model.base import Base

log = logging.getLogger("talkback")


class UnknownBaseError(TalkbackError):
    """Reports a base whose folder is nowhere to be found."""


class BaseLocation(NamedTuple):
    """Holds where a base is: a folder, the starter's name or a Hub id; of the latter the commit."""

    name: str
    commit: str | None


class KnownBases:
    """Reads and writes the table base: each revision's identity, and where it was served from."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def identity(self, revision: str | None) -> str | None:
        """Return the identity of the base of this revision; None if it was never served."""
        row = self._store.row("select identity from base where revision = ?", (revision,))
        return row["identity"] if row else None

    def revisions(self, revision: str | None) -> frozenset[str | None]:
        """Return all revisions that are the same base as this one, itself included."""
        rows = self._store.rows(
            "select revision from base where identity = ?", (self.identity(revision),)
        )
        return frozenset({revision, *(str(row["revision"]) for row in rows)})

    def locate(self, name: str, revision: str | None) -> BaseLocation:
        """Return where the base of this revision is now; ``name`` is where it once was.

        Raises UnknownBaseError for a folder that is nowhere to be found: the Hub is not asked.
        """
        ours = self.revisions(revision)
        rows = self._store.rows("select name, revision from base order by rowid desc")
        served = [(row["name"], row["revision"]) for row in rows if row["revision"] in ours]
        for known, commit in [*served, (name, revision)]:
            if find_folder(known) is not None:
                return BaseLocation(canonical_name(known), None)
            if not _is_folder_hash(commit):
                return BaseLocation(known, commit)
        raise UnknownBaseError(
            f"there is no folder {served[0][0] if served else name}, the base of the adapter in "
            "service; start `talkback serve --base-model FOLDER` once with the folder that it is "
            "in now"
        )

    def resolve(self, name: str, revision: str | None = None) -> str:
        """Return the folder that a relative path means which leads nowhere from here: one that was
        served under a path with the same end. A ``revision`` means the Hub's model of that name.

        Raises UnknownBaseError where that folder is gone: the Hub is not asked for it.
        """
        end = Path(name).parts
        if revision is not None or find_folder(name) is not None or Path(name).is_absolute():
            return name
        rows = self._store.rows("select name from base order by rowid desc")
        served = [Path(row["name"]) for row in rows]
        meant = [path for path in served if path.is_absolute() and path.parts[-len(end) :] == end]
        for folder in meant:
            if folder.is_dir():
                log.warning("there is no folder %s here; %s is taken", name, folder)
                return str(folder)
        if meant:
            raise UnknownBaseError(
                f"there is no folder {name}; it was {meant[0]} when it was served last. Give the "
                "folder that it is in now, or --revision main for the Hub's model of that name"
            )
        return name

    def record(self, base: "Base") -> None:
        """Record that this base is served from where it is."""
        newest = self._store.row(
            "select name, revision from base where identity = ? order by rowid desc limit 1",
            (base.identity,),
        )
        if newest is None or tuple(newest) != (base.name, base.revision):
            self._insert("or replace", base.revision, base.name, base.identity)

    def record_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Record the revision that an adapter was trained on, which a cycle may be first to see."""
        if manifest.get("identity") and manifest.get("base_revision"):
            columns = ("base_revision", "base", "identity")
            self._insert("or ignore", *(str(manifest[column]) for column in columns))

    def adopt(self, revision: str, name: str, base: "Base") -> None:
        """Record that a revision from before identities were kept is this base."""
        self._insert("or replace", revision, name, base.identity)

    def _insert(self, conflict: str, revision: str, name: str, identity: str) -> None:
        with self._store.write() as db:
            db.execute(
                f"insert {conflict} into base (revision, name, recorded_at, identity) "
                "values (?, ?, ?, ?)",
                (revision, name, now(), identity),
            )


def _is_folder_hash(revision: str | None) -> bool:
    """Tell whether a revision is the hash of a folder's files, and not a commit of the Hub."""
    return revision is not None and revision.startswith("sha-")
