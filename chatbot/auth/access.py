"""Decides who sends a request and what they may do. Roles are ordered: user < reviewer < operator.

    access = Access(store, home.root, token="owl", loopback=False)
    caller = access.require(request, "reviewer")     # or PermissionDeniedError, BadKeyError

| what                         | on loopback, before any key | else                          |
|------------------------------|-----------------------------|-------------------------------|
| chat, completions, feedback  | open                        | anybody, while ``anonymous``; |
|                              |                             | else a key of any role        |
| reviews; reading adapters    | open                        | a reviewer's key              |
| promotion, rollback, metrics | open                        | an operator's key             |
| health, models, API document | open                        | open                          |

Programs send ``Authorization: Bearer tb-...``; on the pages the key is typed once and a cookie
stands for it (``sessions``). The review token of the settings is an operator's key. Whoever is
forwarded by a proxy from elsewhere is not on loopback, wherever the server listens.

People are kept apart by name: a user's key speaks for its own name and for ``name/...``, the
anonymous for ``anonymous`` and ``anonymous/...``, and neither reaches what is another's.
Reviewers and operators speak for anybody, and so does everyone where all is open.
"""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import HTTPConnection, Request

from chatbot.auth import api_keys
from chatbot.auth.api_keys import KEY_PREFIX, ROLES, Role
from chatbot.auth.hub_login import hub_username
from chatbot.auth.sessions import COOKIE_NAME, SessionCookies
from feedback.db.database import Database
from feedback.errors import TalkbackError

ANONYMOUS = "anonymous"
"""The person of a request that names none."""


class BadKeyError(TalkbackError):
    """Signals a key with our prefix that was never made here, or is revoked."""


class PermissionDeniedError(TalkbackError):
    """Signals that a request takes a role that its caller does not have.

    ``authenticated`` is True for callers with a key or login, of another role.
    """

    def __init__(self, role: Role, caller: "Caller") -> None:
        self.authenticated = bool(caller.id)
        given = f"; the one given is a key of role {caller.role}" if self.authenticated else ""
        super().__init__(f"This needs a key of role {role}{given}.")


@dataclass(frozen=True)
class Caller:
    """Identifies who sends a request. ``id`` is that of the key or login, "" without one; ``name``
    is whose it is, "" where nobody in particular is meant. ``role`` None may do nothing."""

    role: Role | None
    name: str = ""
    id: str = ""

    def has_role(self, role: Role) -> bool:
        """Tell whether the caller has this role or a higher one."""
        return self.role is not None and ROLES.index(self.role) >= ROLES.index(role)

    def person_named(self, user: str | None) -> str:
        """Return the person that the caller speaks for when they name ``user`` in a request."""
        if self.has_role("reviewer"):
            return user or self.name or ANONYMOUS
        return f"{self.name}/{user}" if user else self.name

    def decider(self, given: str, role: Role) -> str:
        """Return the name under which the caller's decision is kept: whose key it is, else the name
        ``given`` with the decision, else the ``role`` that the decision takes."""
        return self.name or given or role

    def acts_for(self, person: str) -> bool:
        """Tell whether the caller may read and change what is this person's."""
        is_self = person == self.name or person.startswith(f"{self.name}/")
        return is_self or self.has_role("reviewer")


class Access:
    """Applies the rules of one server. ``loopback``: only this machine reaches it. ``operators``
    and ``reviewers`` are names of the Hugging Face Hub, for a Space that people log in to."""

    def __init__(
        self,
        db: Database,
        root: Path,
        *,
        token: str = "",
        loopback: bool = True,
        anonymous: bool = True,
        reviewers: Iterable[str] = (),
        operators: Iterable[str] = (),
    ) -> None:
        self._db = db
        self._token = token
        self._anonymous = Caller("user" if anonymous else None, ANONYMOUS)
        self._reviewers, self._operators = set(reviewers), set(operators)
        self.loopback = loopback
        self.sessions = SessionCookies(root)

    def identify(self, request: HTTPConnection) -> Caller:
        """Return who sends this request; BadKeyError."""
        given = _bearer_token(request.headers)
        if given:
            known = self.authenticate(given)
            if known is not None:
                return known
            if given.startswith(KEY_PREFIX):
                raise BadKeyError("This key was never made here, or it is revoked.")
        return self._session_caller(request) or self._keyless_caller(request)

    def require(self, request: HTTPConnection, role: Role) -> Caller:
        """Return who sends this request; PermissionDeniedError without the role, BadKeyError."""
        caller = self.identify(request)
        if not caller.has_role(role):
            raise PermissionDeniedError(role, caller)
        return caller

    def role_dependency(self, role: Role) -> Callable[[Request], Awaitable[Caller]]:
        """Return ``require`` as a FastAPI dependency. It is async although it reads the database:
        that takes less time than the thread that FastAPI would run it on."""

        async def require(request: Request) -> Caller:
            return self.require(request, role)

        return require

    def authenticate(self, secret: str) -> Caller | None:
        """Return whose key, or the review token, this is; None for any other secret."""
        if self._token and hmac.compare_digest(secret.encode(), self._token.encode()):
            return self._token_caller()
        key = api_keys.find_by_secret(self._db, secret) if secret.startswith(KEY_PREFIX) else None
        return Caller(key.role, key.name, key.id) if key else None

    def _session_caller(self, request: HTTPConnection) -> Caller | None:
        """Return who has logged in on the pages, None for a request without a valid login.

        Browsers send cookies with requests of other sites' scripts too, so a cookie is accepted
        only for requests of our own pages, or where the browser does not say whose they are.
        """
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return None
        subject = self.sessions.read(request.cookies.get(COOKIE_NAME))
        if subject is None:
            return self._hub_caller(hub_username(request.scope))
        if self._token and subject == self._token_caller().id:
            return self._token_caller()
        key = api_keys.find_by_id(self._db, subject)
        return Caller(key.role, key.name, key.id) if key else None

    def _token_caller(self) -> Caller:
        """Return the token's caller, whose id changes with it: logins with an old token end."""
        return Caller("operator", "", self.sessions.fingerprint(self._token))

    def _hub_caller(self, name: str | None) -> Caller | None:
        """Return the caller of a Hub user name, who is a user at least; None without a name."""
        if name is None:
            return None
        operates, reviews = name in self._operators, name in self._reviewers
        role: Role = "operator" if operates else "reviewer" if reviews else "user"
        return Caller(role, f"hf:{name}", f"hf:{name}")

    def _keyless_caller(self, request: HTTPConnection) -> Caller:
        """Return the caller of a request without a key: an operator on loopback while no key was
        ever made and no token is set, else the anonymous user."""
        guarded = self._token or not self.loopback or not _from_loopback(request)
        if guarded or api_keys.any_exist(self._db):
            return self._anonymous
        return Caller("operator")


def _bearer_token(headers: Mapping[str, Any]) -> str:
    scheme, _, given = str(headers.get("authorization", "")).partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _from_loopback(request: HTTPConnection) -> bool:
    """Tell whether a request comes from this machine; with a proxy that uvicorn trusts, whether the
    client that the proxy names does."""
    return request.client is not None and is_loopback_host(request.client.host)


def is_loopback_host(host: str) -> bool:
    """Tell whether only this machine can reach a server that listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
