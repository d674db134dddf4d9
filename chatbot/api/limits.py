"""What keeps one caller from taking everything: how many requests, and how large.

Who comes with a key is counted by key, everybody else by address. Behind a proxy, addresses are
right only where uvicorn trusts it: ``FORWARDED_ALLOW_IPS`` names it.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from chatbot.api.errors import Problem
from chatbot.auth.access import Access, BadKey

Scope = dict[str, Any]
CALLERS = 10_000
"""So many are remembered; the ones longest unheard are forgotten, which is in their favour."""


class Bucket:
    """Tokens that fill up to ``burst`` at ``rate`` a minute; each request takes one."""

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._clock = rate / 60, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """0 when the request may pass, else the seconds until one may."""
        moment = self._clock()
        left, then = self._left.pop(caller, (float(self._burst), moment))
        left = min(self._burst, left + (moment - then) * self._per_second)
        wait = 0.0 if left >= 1 else (1 - left) / self._per_second
        self._left[caller] = (left - 1 if wait == 0 else left, moment)
        if len(self._left) > CALLERS:
            self._left.popitem(last=False)
        return wait


class Limits:
    """An ASGI app in front of another: too many or too large requests never reach that one.

    ``rate`` is in requests a minute, 0 for any number; ``most`` in bytes of a body.
    """

    def __init__(self, app: Any, access: Access, *, rate: float, burst: int, most: int) -> None:
        self._app = app
        self._access = access
        self._bucket = Bucket(rate, burst) if rate else None
        self._most = most

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._count(scope)
            receive = await self._body(scope, receive)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _count(self, scope: Scope) -> None:
        if self._bucket is None or not counted(scope["method"], scope["path"]):
            return
        caller = await run_in_threadpool(self._name, HTTPConnection(scope))
        wait = self._bucket.take(caller)
        if wait:
            raise Problem(
                429,
                f"Too many requests. Try again in {wait:.0f} s.",
                "rate_limit_error",
                code="rate_limited",
                headers={"Retry-After": str(max(1, round(wait + 0.5)))},
            )

    def _name(self, request: HTTPConnection) -> str:
        """Whose requests these are. A key that is none must not buy a fresh count."""
        try:
            caller = self._access.caller(request)
        except BadKey:
            return address(request)
        return caller.id or address(request)

    async def _body(self, scope: Scope, receive: Any) -> Any:
        """What gives the body, which is read here so that no more of it is ever held."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length == b"0" and b"transfer-encoding" not in headers:
            return receive
        if length.isdigit() and int(length) > self._most:
            raise self._too_large()
        return _again(await self._read(receive), receive)

    async def _read(self, receive: Any) -> bytes | None:
        """The whole body; None when the client is gone before its end."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._most:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Problem:
        return Problem(
            413,
            f"The request is larger than {self._most} bytes; send less.",
            code="request_too_large",
            headers={"Connection": "close"},  # the rest of it is not waited for
        )


def counted(method: str, path: str) -> bool:
    """Whether a request costs enough to be counted: the API and what people do on the pages, not
    the pages' files, nor the pulse that they ask for how things stand by."""
    if path.startswith("/v1/"):
        return True
    return method not in ("GET", "HEAD", "OPTIONS") and not path.startswith("/gradio_api/run/")


def address(request: HTTPConnection) -> str:
    """Where it comes from; of IPv6 the network, for whoever has one address there has them all."""
    host = request.client.host if request.client else ""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network(f"{ip}/64", strict=False))


def _again(body: bytes | None, receive: Any) -> Any:
    """A ``receive`` that gives what has been read, then what comes after it."""
    messages: list[dict[str, Any]] = [{"type": "http.disconnect"}]
    if body is not None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Any:
        return messages.pop() if messages else await receive()

    return give
