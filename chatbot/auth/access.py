"""Who is asking, and what they may do. Roles are ordered: user < reviewer < operator.

    access = Access(store, home.root, token="owl", loopback=False)
    caller = access.require(request, "reviewer")     # Refused, or BadKey for a key that is none

| what                         | on loopback, before any key | else                          |
|------------------------------|-----------------------------|-------------------------------|
| chat, completions, feedback  | open                        | anybody, while ``anonymous``; |
|                              |                             | else a key of any role        |
| reviews; a look at adapters  | open                        | a reviewer's key              |
| promotion, rollback, metrics | open                        | an operator's key             |
| health, models, API document | open                        | open                          |

Programs send ``Authorization: Bearer tb-...``; on the pages the key is typed once and a cookie
stands for it (``sessions``). The review token of the settings is an operator's key. Whoever is
forwarded by a proxy from elsewhere is not on loopback, wherever the server listens.

People are kept apart by name: a user's key speaks for its own name and for ``name/...``, the
nameless for ``anonymous`` and ``anonymous/...``, and neither reaches what is another's.
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
    """A key of ours that was never made, or is revoked."""


class PermissionDeniedError(TalkbackError):
    """What is asked for takes a role that this caller does not have; ``known``: but another."""

    def __init__(self, role: Role, caller: "Caller") -> None:
        self.authenticated = bool(caller.id)
        mine = f"; the one given is a key of role {caller.role}" if self.authenticated else ""
        super().__init__(f"This needs a key of role {role}{mine}.")


@dataclass(frozen=True)
class Caller:
    """Who asks. ``id`` is that of the key or login, "" for whoever has none; ``name`` is whose it
    is, "" where nobody in particular is meant. ``role`` None may do nothing."""

    role: Role | None
    name: str = ""
    id: str = ""

    def has_role(self, role: Role) -> bool:
        """Whether this role, or one below, is theirs."""
        return self.role is not None and ROLES.index(self.role) >= ROLES.index(role)

    def person_named(self, user: str | None) -> str:
        """The person that they speak for when they call them ``user``."""
        if self.has_role("reviewer"):
            return user or self.name or ANONYMOUS
        return f"{self.name}/{user}" if user else self.name

    def decider(self, given: str, role: Role) -> str:
        """Return the name under which a decision of theirs is kept: whose key it is, else the one
        ``given`` with the decision, else the ``role`` that the decision takes."""
        return self.name or given or role

    def acts_for(self, person: str) -> bool:
        """Whether they may touch what is this person's."""
        is_self = person == self.name or person.startswith(f"{self.name}/")
        return is_self or self.has_role("reviewer")


class Access:
    """The rules of one server. ``loopback``: only this machine reaches it. ``operators`` and
    ``reviewers`` are names of the Hugging Face Hub, for a Space that people log in to."""

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
        """Who sends this request; BadKey."""
        given = _bearer_token(request.headers)
        if given:
            known = self.authenticate(given)
            if known is not None:
                return known
            if given.startswith(KEY_PREFIX):
                raise BadKeyError("This key was never made here, or it is revoked.")
        return self._session_caller(request) or self._keyless_caller(request)

    def require(self, request: HTTPConnection, role: Role) -> Caller:
        """Who sends this request, if they may do what takes this role; Refused, BadKey."""
        caller = self.identify(request)
        if not caller.has_role(role):
            raise PermissionDeniedError(role, caller)
        return caller

    def role_dependency(self, role: Role) -> Callable[[Request], Awaitable[Caller]]:
        """``require`` as what a route depends on. The look at the database is short, and a thread
        for it would take longer."""

        async def require(request: Request) -> Caller:
            return self.require(request, role)

        return require

    def authenticate(self, secret: str) -> Caller | None:
        """Whose key, or the review token, this is."""
        if self._token and hmac.compare_digest(secret.encode(), self._token.encode()):
            return self._token_caller()
        key = api_keys.find_by_secret(self._db, secret) if secret.startswith(KEY_PREFIX) else None
        return Caller(key.role, key.name, key.id) if key else None

    def _session_caller(self, request: HTTPConnection) -> Caller | None:
        """Who has logged in on the pages. A browser sends cookies along for other sites' scripts
        too, so they count only for what our own pages ask."""
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
        """The id changes with the token, and who logged in with an old one is out."""
        return Caller("operator", "", self.sessions.fingerprint(self._token))

    def _hub_caller(self, name: str | None) -> Caller | None:
        """Whoever the Hub says it is; everybody there is a user at least."""
        if name is None:
            return None
        operates, reviews = name in self._operators, name in self._reviewers
        role: Role = "operator" if operates else "reviewer" if reviews else "user"
        return Caller(role, f"hf:{name}", f"hf:{name}")

    def _keyless_caller(self, request: HTTPConnection) -> Caller:
        guarded = self._token or not self.loopback or not _from_loopback(request)
        if guarded or api_keys.any_exist(self._db):
            return self._anonymous
        return Caller("operator")


def _bearer_token(headers: Mapping[str, Any]) -> str:
    scheme, _, given = str(headers.get("authorization", "")).partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _from_loopback(request: HTTPConnection) -> bool:
    """Whether it comes from this machine, also after uvicorn has asked the proxy."""
    try:
        return request.client is not None and is_loopback_host(request.client.host)
    except ValueError:
        return False


def is_loopback_host(host: str) -> bool:
    """Whether only this machine can reach a server on that host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
