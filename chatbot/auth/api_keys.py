"""Creates, finds and revokes API keys; a key is never changed.

    key = create(store, "rita", "reviewer")        # key.secret is shown once, and stored nowhere
    find_by_secret(store, key.secret)              # the key, None for a wrong or revoked one

A secret is 192 random bits, so its SHA-256 is stored: a slow hash with salt slows down guessing of
passwords that people choose, and nobody can guess 192 bits.
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
"""In ascending order: each may do what those before it may."""

KEY_PREFIX = "tb-"
"""The prefix of every secret, by which our keys are distinguished from other programs'."""

_PREFIX_LENGTH = len(KEY_PREFIX) + 8
_SECRET_BYTES = 24
_NAME_PATTERN = re.compile(r"[\w.@'-]([\w.@' -]{0,78}[\w.@'-])?")
"""Without "/" and ":", which separate a key's name from those of its users and of other logins."""


class ApiKeyError(TalkbackError):
    """Signals a key that cannot be made or revoked; says which and what to do."""


@dataclass(frozen=True)
class ApiKey:
    """Holds a key as it is stored. ``prefix`` is the part of the secret that may be shown."""

    id: str
    prefix: str
    name: str
    role: Role
    created_at: str
    revoked_at: str | None = None


@dataclass(frozen=True)
class NewApiKey(ApiKey):
    """Holds a key just made, with its secret."""

    secret: str = ""


_SELECT_KEYS = """select k.id, k.prefix, k.name, k.role, k.created_at, r.created_at as revoked_at
from access_key k left join revocation r on r.key_id = k.id"""


def create(db: Database, name: str, role: str) -> NewApiKey:
    """Create a key for ``name``, who may have several; ApiKeyError for a bad name or role."""
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
    """Return the key with this secret, None if there is none or it is revoked.

    The lookup is by hash, so the time it takes tells nothing of how much of a guess was right.
    """
    row = db.row(f"{_SELECT_KEYS} where k.hash = ? and r.key_id is null", (_hash(secret),))
    return ApiKey(**row) if row else None


def find_by_id(db: Database, id: str) -> ApiKey | None:
    """Return the key of this id, None if there is none or it is revoked."""
    row = db.row(f"{_SELECT_KEYS} where k.id = ? and r.key_id is null", (id,))
    return ApiKey(**row) if row else None


def list_all(db: Database) -> list[ApiKey]:
    """Return all keys, newest first, revoked ones included."""
    return [ApiKey(**row) for row in db.rows(f"{_SELECT_KEYS} order by k.rowid desc")]


def any_exist(db: Database) -> bool:
    """Tell whether there ever was a key. Revoked ones count: else revoking the last key would open
    the server to everybody on this machine."""
    return db.row("select 1 from access_key limit 1") is not None


def revoke(db: Database, id_or_prefix: str) -> ApiKey:
    """Revoke the key of this id or prefix, at once and for good; ApiKeyError unless exactly one key
    has it."""
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
