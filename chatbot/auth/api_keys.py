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

KEY_PREFIX = "tb-"
"""What every key begins with, so that other programs' keys are told from ours."""

_PREFIX_LENGTH = len(KEY_PREFIX) + 8
_SECRET_BYTES = 24
_NAME_PATTERN = re.compile(r"[\w.@'-]([\w.@' -]{0,78}[\w.@'-])?")
"""Without "/" and ":", which part a key's name from those of its users and of other logins."""


class ApiKeyError(TalkbackError):
    """A key that cannot be made or revoked; says which and what to do."""


@dataclass(frozen=True)
class ApiKey:
    """A key as it is kept. ``prefix`` is the part of it that may be shown."""

    id: str
    prefix: str
    name: str
    role: Role
    created_at: str
    revoked_at: str | None = None


@dataclass(frozen=True)
class NewApiKey(ApiKey):
    """A key just made, with its secret."""

    secret: str = ""


_KEYS = """select k.id, k.prefix, k.name, k.role, k.created_at, r.created_at as revoked_at
from access_key k left join revocation r on r.key_id = k.id"""


def create(db: Database, name: str, role: str) -> NewApiKey:
    """A new key for ``name``, who may have several; KeyProblem for a bad name or role."""
    name = name.strip()
    if role not in ROLES:
        raise ApiKeyError(f"unknown role {role!r}; one of {', '.join(ROLES)}")
    if not _NAME_PATTERN.fullmatch(name) or name == "anonymous":
        raise ApiKeyError(
            f"{name!r} cannot name a key; 1 to 80 letters, digits, spaces or . _ @ ' - can, and "
            "'anonymous' cannot"
        )
    secret = KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    row = {
        "id": new_id("key"),
        "prefix": secret[:_PREFIX_LENGTH],
        "name": name,
        "role": role,
        "created_at": now(),
    }
    with db.write() as connection:
        connection.insert("access_key", row | {"hash": _hash(secret)})
    return NewApiKey(**row, secret=secret)  # type: ignore[arg-type]  # the role is checked above


def find_by_secret(db: Database, secret: str) -> ApiKey | None:
    """The key with this secret, unless it is revoked. It is looked up by its hash, so that the
    time it takes tells nothing of how much of a guess was right."""
    row = db.row(f"{_KEYS} where k.hash = ? and r.key_id is null", (_hash(secret),))
    return ApiKey(**row) if row else None


def find_by_id(db: Database, id: str) -> ApiKey | None:
    """The key of this id, unless it is revoked."""
    row = db.row(f"{_KEYS} where k.id = ? and r.key_id is null", (id,))
    return ApiKey(**row) if row else None


def list_all(db: Database) -> list[ApiKey]:
    """All keys, newest first, revoked ones too."""
    return [ApiKey(**row) for row in db.rows(f"{_KEYS} order by k.rowid desc")]


def any_exist(db: Database) -> bool:
    """Whether there ever was a key; a revoked one counts, or revoking the last would open all."""
    return db.row("select 1 from access_key limit 1") is not None


def revoke(db: Database, id_or_prefix: str) -> ApiKey:
    """End the key of this id or prefix, at once and for good; KeyProblem when it is not one."""
    with db.write() as connection:
        found = [key for key in list_all(db) if id_or_prefix in (key.id, key.prefix)]
        active = [key for key in found if key.revoked_at is None]
        if len(active) != 1:
            raise ApiKeyError(_describe_mismatch(id_or_prefix, found, active))
        revoked_at = now()
        connection.insert("revocation", {"key_id": active[0].id, "created_at": revoked_at})
    return replace(active[0], revoked_at=revoked_at)


def _describe_mismatch(which: str, found: list[ApiKey], active: list[ApiKey]) -> str:
    if active:
        return f"{len(active)} keys begin with {which}; name one by its id: " + ", ".join(
            key.id for key in active
        )
    if found:
        return f"{which} is revoked already, since {found[0].revoked_at}"
    return f"no key has the id or prefix {which!r}; `talkback keys list` shows them"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
