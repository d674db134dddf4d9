"""Limits how many requests a caller may send, how large and how deep their bodies may be.

Callers with a key are counted by key, all others by address: behind a proxy, by the proxy's, unless
``[server] trusted_proxies`` names it. A wrong key, token or cookie counts ten times, and while an
address has used up what it may send, nothing that it sends is compared with the review token.
"""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from chatbot.api.errors import ApiError
from chatbot.api.json_body import clean_json
from chatbot.auth.access import Access, bearer_token
from feedback.db.well_formed import to_well_formed

Scope = dict[str, Any]
MAX_TRACKED_CALLERS = 10_000
"""How many callers are remembered; those that were idle longest are forgotten, and start anew with
a full bucket."""
DEFAULT_RATE_PER_MINUTE = 60
"""Requests a minute of whoever is not at home, unless the settings say otherwise."""
WRONG_SECRET_COST = 10
"""Requests that a wrong key, token or cookie counts as, besides the one that it comes with."""


class TokenBuckets:
    """Limits each caller's rate by a token bucket: it refills up to ``burst`` tokens at ``rate`` a
    minute, and a request takes one."""

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._clock = rate / 60, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: str, cost: float = 1) -> float:
        """Return 0 and take ``cost`` tokens when a request may pass, else the seconds until one
        may. It may while there is a whole token, whatever it costs."""
        with self._lock:
            tokens, now = self._refill(caller)
            # A refused request takes nothing: who waits as long as told passes.
            wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
            self._buckets[caller] = (tokens - cost if wait == 0 else tokens, now)
            return wait

    def charge(self, caller: str, cost: float) -> None:
        """Take tokens of a request that has passed, also such as are not there yet."""
        with self._lock:
            tokens, now = self._refill(caller)
            self._buckets[caller] = (tokens - cost, now)

    def _refill(self, caller: str) -> tuple[float, float]:
        """Take the caller's bucket out, to be put back last; return its tokens, and now."""
        now = self._clock()
        tokens, updated_at = self._buckets.pop(caller, (float(self._burst), now))
        if len(self._buckets) >= MAX_TRACKED_CALLERS:
            self._buckets.popitem(last=False)
        return min(self._burst, tokens + (now - updated_at) * self._per_second), now


class RequestLimitMiddleware:
    """Refuses too many requests (429) and too large ones (413) before the app sees them; the texts
    that it sees are well-formed.

    ``rate_per_minute`` 0 lets any number pass. None is the default: ``DEFAULT_RATE_PER_MINUTE``,
    and any number for callers at home, whose guesses at the review token count nevertheless.
    """

    def __init__(
        self,
        app: Any,
        access: Access,
        *,
        rate_per_minute: float | None,
        burst: int,
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._access = access
        self._limits_home = rate_per_minute is not None
        rate = DEFAULT_RATE_PER_MINUTE if rate_per_minute is None else rate_per_minute
        self._rate_limit = TokenBuckets(rate, burst) if rate else None
        self._max_body_bytes = max_body_bytes
        access.on_wrong_secret = self._charge_wrong_secret

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on to the app, or answer why it is refused."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._check_rate(HTTPConnection(scope))
            receive = await self._buffer_body(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        scope["path"] = to_well_formed(scope["path"])  # no copy: who counts reads the route from it
        await self._app(scope, receive, send)

    async def _check_rate(self, request: HTTPConnection) -> None:
        if self._rate_limit is None:
            return
        counted = is_rate_limited(request.scope["method"], request.scope["path"])
        counted = counted and (self._limits_home or not self._access.is_at_home(request))
        if not counted and not (_shows_secret(request) and self._counts_guesses(request)):
            return
        known = await run_in_threadpool(self._access.known_id, request)
        if known and not counted:
            return
        wait = self._rate_limit.take(known or client_address(request), int(counted))
        if wait:
            raise ApiError(
                429,
                f"Too many requests. Try again in {wait:.0f} s.",
                "rate_limit_error",
                code="rate_limited",
                headers={"Retry-After": str(max(1, round(wait + 0.5)))},
            )

    def _charge_wrong_secret(self, request: HTTPConnection) -> None:
        """Count a request with a wrong secret, by address: made-up keys buy no fresh buckets."""
        if self._rate_limit and self._counts_guesses(request):
            self._rate_limit.charge(client_address(request), WRONG_SECRET_COST)

    def _counts_guesses(self, request: HTTPConnection) -> bool:
        """Tell whether a wrong secret counts: where nothing else does, one does that may be a guess
        at the review token."""
        counted = self._limits_home or self._access.has_token
        return counted or not self._access.is_at_home(request)

    async def _buffer_body(self, scope: Scope, receive: Any) -> Any:
        """Return a ``receive`` that gives the body, read here so that no larger one is held."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length == b"0" and b"transfer-encoding" not in headers:
            return receive
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        return _replay(await self._read_body(receive), receive)

    async def _read_body(self, receive: Any) -> bytes | None:
        """Return the whole body, its JSON cleaned; None when the client is gone before its end."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return clean_json(bytes(body))

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"The request is larger than {self._max_body_bytes} bytes; send less.",
            code="request_too_large",
            headers={"Connection": "close"},  # the rest of it is not waited for
        )


def is_rate_limited(method: str, path: str) -> bool:
    """Tell whether a request is counted: the API and what people do on the pages are, the pages'
    files and their polling for news (``/gradio_api/run``) are not."""
    if path.startswith("/v1/"):
        return True
    return method not in ("GET", "HEAD", "OPTIONS") and not path.startswith("/gradio_api/run/")


def _shows_secret(request: HTTPConnection) -> bool:
    """Tell whether a request has a secret that may be a guess."""
    return bool(bearer_token(request)) or request.scope["path"].endswith("/session")


def client_address(request: HTTPConnection) -> str:
    """Return the client's address; of IPv6 its /64 network, which usually one client owns."""
    host = request.client.host if request.client else ""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    ip = getattr(ip, "ipv4_mapped", None) or ip  # as a socket for both versions names IPv4 clients
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network(f"{ip}/64", strict=False))


def _replay(body: bytes | None, receive: Any) -> Any:
    """Return a ``receive`` that gives what has been read, then what comes after it."""
    messages: list[dict[str, Any]] = [{"type": "http.disconnect"}]
    if body is not None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Any:
        return messages.pop() if messages else await receive()

    return give
