"""What operators look at: whether answers can be given, and the figures that Prometheus collects.

    curl localhost:8000/readyz          # 200, or 503 with the reason: send no traffic
    curl localhost:8000/metrics         # with an operator's key, where there are keys

``/healthz`` says that the process lives, also while it loads; who restarts servers looks there.
"""

import threading
import time
from typing import TYPE_CHECKING, Any

import prometheus_client as prometheus
from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatbot.api.schemas import ERROR_RESPONSES, ReadinessResponse
from chatbot.metrics import Backlog, Metrics
from feedback.db.database import StoreError
from feedback.store import Store

if TYPE_CHECKING:
    from chatbot.service import Service

WRITE_PROBE_SECONDS = 1.0
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def router(service: "Service", backlog: Backlog) -> APIRouter:
    """``/readyz`` and ``/metrics``."""
    routes = APIRouter(tags=["health"], responses=ERROR_RESPONSES)
    database = WriteProbe(service.store)
    registry = service.metrics.registry(service, backlog)

    @routes.get("/readyz", response_model=ReadinessResponse)
    def readyz() -> JSONResponse:
        """Whether to send people here: somebody can answer, and what they say can be kept."""
        complaint = service.engine.unavailable_reason or database.error()
        ready = {"ready": not complaint, "adapter": service.speaking, "warning": service.warning}
        if complaint:
            return JSONResponse({**ready, "reason": complaint}, 503)
        return JSONResponse(ready)

    operator = Depends(service.access.role_dependency("operator"))

    @routes.get("/metrics", dependencies=[operator], include_in_schema=False)
    def metrics() -> Response:
        """Counters, gauges and histograms in Prometheus' text format."""
        text = prometheus.generate_latest(registry)
        return Response(text, headers={"content-type": prometheus.CONTENT_TYPE_LATEST})

    return routes


class WriteProbe:
    """Whether the database can be written, tried at most once a second: each try is a write to
    the disk, and anybody may ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._checked_at: float | None = None
        self._error = ""

    def error(self) -> str:
        """Why it cannot; "" when it can."""
        with self._lock:
            if (
                self._checked_at is None
                or time.monotonic() - self._checked_at > WRITE_PROBE_SECONDS
            ):
                self._error = self._check()
                self._checked_at = time.monotonic()
            return self._error

    def _check(self) -> str:
        try:
            self._store.check_writable()
        except StoreError as error:
            return str(error)
        return ""


class RequestCountMiddleware:
    """An ASGI app whose HTTP requests are counted when their answer begins."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._requests = app, metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing is added to the pieces of a stream but one comparison."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        ours, began = scope["app"], False

        def told(message: Message) -> Any:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                self._count(scope, ours, message["status"])
            return send(message)

        try:
            await self._app(scope, receive, told)
        except Exception:
            if not began:
                self._count(scope, ours, 500)
            raise

    def _count(self, scope: Scope, ours: object, status: int) -> None:
        """By the route's template; all routes of the pages' own app are one."""
        route = getattr(scope.get("route"), "path", "none") if scope["app"] is ours else "pages"
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._requests.labels(method, route, status).inc()
