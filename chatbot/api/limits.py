"""Limits how many requests a caller may send, and how large their bodies may be.

Callers with a key are counted by key, all others by address. Behind a proxy, addresses are
right only where uvicorn trusts it: ``FORWARDED_ALLOW_IPS`` names it.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from chatbot.api.errors import ApiError
from chatbot.auth.access import Access, BadKeyError

Scope = dict[str, Any]
MAX_TRACKED_CALLERS = 10_000
"""How many callers are remembered; those that were idle longest are forgotten, and start anew with
a full bucket."""
DEFAULT_RATE_PER_MINUTE = 60
"""Requests a minute where others reach the server, unless the settings say otherwise."""


class TokenBuckets:
    """Limits each caller's rate by a token bucket: it refills up to ``burst`` tokens at ``rate`` a
    minute, and a request takes one."""

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._clock = rate / 60, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """Return 0 when the request may pass, else the seconds until one may."""
        now = self._clock()
        tokens, updated_at = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - updated_at) * self._per_second)
        # A refused request takes nothing: who waits as long as told passes.
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
        self._buckets[caller] = (tokens - 1 if wait == 0 else tokens, now)
        if len(self._buckets) > MAX_TRACKED_CALLERS:
            self._buckets.popitem(last=False)
        return wait


class RequestLimitMiddleware:
    """Refuses too many requests (429) and too large ones (413) before the app sees them.

    ``rate_per_minute`` 0 lets any number pass. None is the default: ``DEFAULT_RATE_PER_MINUTE``
    where others reach the server, any number on loopback.
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
        if rate_per_minute is None:
            rate_per_minute = 0 if access.loopback else DEFAULT_RATE_PER_MINUTE
        self._app = app
        self._access = access
        self._rate_limit = TokenBuckets(rate_per_minute, burst) if rate_per_minute else None
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on to the app, or answer why it is refused."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._check_rate(scope)
            receive = await self._buffer_body(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _check_rate(self, scope: Scope) -> None:
        if self._rate_limit is None or not is_rate_limited(scope["method"], scope["path"]):
            return
        caller = await run_in_threadpool(self._caller_id, HTTPConnection(scope))
        wait = self._rate_limit.take(caller)
        if wait:
            raise ApiError(
                429,
                f"Too many requests. Try again in {wait:.0f} s.",
                "rate_limit_error",
                code="rate_limited",
                headers={"Retry-After": str(max(1, round(wait + 0.5)))},
            )

    def _caller_id(self, request: HTTPConnection) -> str:
        """Return who is counted: the id of the key or login, else the address.

        An invalid key is counted by address: made-up keys must not buy fresh buckets.
        """
        try:
            caller = self._access.identify(request)
        except BadKeyError:
            return client_address(request)
        return caller.id or client_address(request)

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
        """Return the whole body, None when the client is gone before its end."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

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


def client_address(request: HTTPConnection) -> str:
    """Return the client's address; of IPv6 its /64 network, which usually one client owns."""
    host = request.client.host if request.client else ""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network(f"{ip}/64", strict=False))


def _replay(body: bytes | None, receive: Any) -> Any:
    """Return a ``receive`` that gives what has been read, then what comes after it."""
    messages: list[dict[str, Any]] = [{"type": "http.disconnect"}]
    if body is not None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Any:
        return messages.pop() if messages else await receive()

    return give
