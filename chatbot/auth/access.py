"""Decides who sends a request and what they may do. Roles are ordered: user < reviewer < operator.

    access = Access(store, home.root, token="owl", loopback=False)
    caller = access.require(request, "reviewer")     # or PermissionDeniedError, BadKeyError

| what                         | at home, before any key     | else                          |
|------------------------------|-----------------------------|-------------------------------|
| chat, completions, feedback  | open                        | anybody, while ``anonymous``; |
|                              |                             | else a key of any role        |
| reviews; reading adapters    | open                        | a reviewer's key              |
| promotion, rollback, metrics | open                        | an operator's key             |
| health, models, API document | open                        | open                          |

Programs send ``Authorization: Bearer tb-...``; on the pages the key is typed once and a cookie
stands for it (``sessions``). The review token of the settings is an operator's key. At home is
whoever uses the machine of a server that listens on loopback alone (``local_requests``); who comes
by a proxy or from a page of another site is not.

People are kept apart by name: a user's key speaks for its own name and for ``name/...``, the
anonymous for ``anonymous`` and ``anonymous/...``, and neither reaches what is another's.
Reviewers and operators speak for anybody, and so does everyone where all is open.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import HTTPConnection, Request

from chatbot.auth import api_keys
from chatbot.auth.api_keys import KEY_PREFIX, ROLES, Role
from chatbot.auth.hub_login import hub_username
from chatbot.auth.local_requests import is_cross_site, remote_trait
from chatbot.auth.sessions import COOKIE_NAME, SessionCookies
from feedback.db.database import Database
from feedback.errors import TalkbackError

log = logging.getLogger("talkback")

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
        self.cors_origins: frozenset[str] = frozenset()
        """Sites whose pages may change something without a key; "*" is all."""
        self.on_wrong_secret: Callable[[HTTPConnection], object] = lambda request: None
        """What is called for each request with a key, token or cookie that is not ours."""
        self._logged_traits: set[str] = set()

    def identify(self, request: HTTPConnection) -> Caller:
        """Return who sends this request; BadKeyError."""
        given = bearer_token(request)
        if given:
            known = self._authenticate(given)
            if known is not None:
                return known
            if given.startswith(KEY_PREFIX):
                self.on_wrong_secret(request)
                raise BadKeyError("This key was never made here, or it is revoked.")
        return self._session_caller(request) or self._keyless_caller(request)

    def require(self, request: HTTPConnection, role: Role) -> Caller:
        """Return who sends this request; PermissionDeniedError without the role, BadKeyError."""
        caller = self.identify(request)
        if not caller.has_role(role) or (not caller.id and self._is_forged(request)):
            if not caller.id and (bearer_token(request) or COOKIE_NAME in request.cookies):
                self.on_wrong_secret(request)
            raise PermissionDeniedError(role, caller)
        return caller

    def log_in(self, request: HTTPConnection, secret: str) -> Caller:
        """Return whose key, or the review token, a login's secret is; BadKeyError."""
        caller = self._authenticate(secret)
        if caller is None:
            self.on_wrong_secret(request)
            raise BadKeyError("This key was never made here, or it is revoked.")
        return caller

    def known_id(self, request: HTTPConnection) -> str:
        """Return the id of the key or login that a request is sent with, "" without one.

        The review token in a header counts as none: people choose it, so it can be guessed.
        """
        given = bearer_token(request)
        key = self._find_key(given) if given else None
        caller = key or self._session_caller(request)
        return caller.id if caller else ""

    @property
    def has_token(self) -> bool:
        """Tell whether there is a review token, which can be guessed."""
        return bool(self._token)

    def is_at_home(self, request: HTTPConnection) -> bool:
        """Tell whether a request is made on the machine of a server that no other one reaches."""
        return self.loopback and not remote_trait(request)

    def role_dependency(self, role: Role) -> Callable[[Request], Awaitable[Caller]]:
        """Return ``require`` as a FastAPI dependency. It is async although it reads the database:
        that takes less time than the thread that FastAPI would run it on."""

        async def require(request: Request) -> Caller:
            return self.require(request, role)

        return require

    def _authenticate(self, secret: str) -> Caller | None:
        """Return whose key, or the review token, this is; None for any other secret."""
        if self._token and hmac.compare_digest(
            secret.encode("utf-8", "surrogatepass"), self._token.encode()
        ):
            return self._token_caller()
        return self._find_key(secret)

    def _find_key(self, secret: str) -> Caller | None:
        key = api_keys.find_by_secret(self._db, secret) if secret.startswith(KEY_PREFIX) else None
        return Caller(key.role, key.name, key.id) if key else None

    def _session_caller(self, request: HTTPConnection) -> Caller | None:
        """Return who has logged in on the pages, None for a request without a valid login.

        Browsers send cookies with requests of other sites' scripts too, so a cookie is accepted
        only for requests of our own pages, or where the browser does not say whose they are.
        """
        if is_cross_site(request):
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
        """Return the caller of a request without a key: an operator at home while no key was ever
        made and no token is set, else the anonymous user."""
        if not self.loopback or self._token or api_keys.any_exist(self._db):
            return self._anonymous
        trait = remote_trait(request)
        if not trait:
            return Caller("operator")
        self._log_trait(trait)
        return self._anonymous

    def _is_forged(self, request: HTTPConnection) -> bool:
        """Tell whether a page of a site that nobody has admitted has a browser change something."""
        admitted = {request.headers.get("origin"), "*"} & self.cors_origins
        reads = request.scope.get("method") in ("GET", "HEAD")
        return is_cross_site(request) and not admitted and not reads

    def _log_trait(self, trait: str) -> None:
        """Log once for each reason why a request does not get what is open at home."""
        if trait not in self._logged_traits:
            self._logged_traits.add(trait)
            log.warning(
                "a request is not taken for this machine's own, since %s: reviews and promotions "
                "take a key then (talkback keys add NAME --role operator); name a proxy in "
                "[server] trusted_proxies",
                trait,
            )


def bearer_token(request: HTTPConnection) -> str:
    """Return the secret of a request's Authorization header, "" without one."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""
