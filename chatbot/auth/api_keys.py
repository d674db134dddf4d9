"""Keys: who may come in, and as what. Made and revoked, never changed.

    key = make(store, "rita", "reviewer")        # key.secret is shown once, and kept nowhere
    find(store, key.secret)                      # the key, None for a stranger's or a revoked one

A secret is 192 bits of chance, so a plain SHA-256 keeps it: there is nothing to guess that a slow
hash with salt, made for people's passwords, would have to slow down.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass, replace
from typing import Literal, get_args

from feedback.db.database import Database
from feedback.errors import TalkbackError
from feedback.ids import new_id, now

Role = Literal["user", "reviewer", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

MARK = "tb-"
"""What every key begins with, so that other programs' keys are told from ours."""

_SHOWN = len(MARK) + 8
_BYTES = 24
_NAME = re.compile(r"[\w.@'-]([\w.@' -]{0,78}[\w.@'-])?")
"""Without "/" and ":", which part a key's name from those of its users and of other logins."""


class KeyProblem(TalkbackError):
    """A key that cannot be made or revoked; says which and what to do."""


@dataclass(frozen=True)
class Key:
    """A key as it is kept. ``prefix`` is the part of it that may be shown."""

    id: str
    prefix: str
    name: str
    role: Role
    created_at: str
    revoked_at: str | None = None


@dataclass(frozen=True)
class NewKey(Key):
    """A key just made, with its secret."""

    secret: str = ""


_KEYS = """select k.id, k.prefix, k.name, k.role, k.created_at, r.created_at as revoked_at
from access_key k left join revocation r on r.key_id = k.id"""


def make(db: Database, name: str, role: str) -> NewKey:
    """A new key for ``name``, who may have several; KeyProblem for a bad name or role."""
    name = name.strip()
    if role not in ROLES:
        raise KeyProblem(f"unknown role {role!r}; one of {', '.join(ROLES)}")
    if not _NAME.fullmatch(name) or name == "anonymous":
        raise KeyProblem(
            f"{name!r} cannot name a key; 1 to 80 letters, digits, spaces or . _ @ ' - can, and "
            "'anonymous' cannot"
        )
    secret = MARK + secrets.token_urlsafe(_BYTES)
    row = {
        "id": new_id("key"),
        "prefix": secret[:_SHOWN],
        "name": name,
        "role": role,
        "created_at": now(),
    }
    with db.write() as connection:
        connection.insert("access_key", row | {"hash": _hash(secret)})
    return NewKey(**row, secret=secret)  # type: ignore[arg-type]  # the role is checked above


def find(db: Database, secret: str) -> Key | None:
    """The key with this secret, unless it is revoked. It is looked up by its hash, so that the
    time it takes tells nothing of how much of a guess was right."""
    row = db.row(f"{_KEYS} where k.hash = ? and r.key_id is null", (_hash(secret),))
    return Key(**row) if row else None


def valid(db: Database, id: str) -> Key | None:
    """The key of this id, unless it is revoked."""
    row = db.row(f"{_KEYS} where k.id = ? and r.key_id is null", (id,))
    return Key(**row) if row else None


def every(db: Database) -> list[Key]:
    """All keys, newest first, revoked ones too."""
    return [Key(**row) for row in db.rows(f"{_KEYS} order by k.rowid desc")]


def any_made(db: Database) -> bool:
    """Whether there ever was a key; a revoked one counts, or revoking the last would open all."""
    return db.row("select 1 from access_key limit 1") is not None


def revoke(db: Database, which: str) -> Key:
    """End the key of this id or prefix, at once and for good; KeyProblem when it is not one."""
    with db.write() as connection:
        found = [key for key in every(db) if which in (key.id, key.prefix)]
        open_ones = [key for key in found if key.revoked_at is None]
        if len(open_ones) != 1:
            raise KeyProblem(_not_one(which, found, open_ones))
        moment = now()
        connection.insert("revocation", {"key_id": open_ones[0].id, "created_at": moment})
    return replace(open_ones[0], revoked_at=moment)


def _not_one(which: str, found: list[Key], open_ones: list[Key]) -> str:
    if open_ones:
        return f"{len(open_ones)} keys begin with {which}; name one by its id: " + ", ".join(
            key.id for key in open_ones
        )
    if found:
        return f"{which} is revoked already, since {found[0].revoked_at}"
    return f"no key has the id or prefix {which!r}; `talkback keys list` shows them"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
