"""Serves the figures that Prometheus collects, and counts HTTP requests for them.

curl localhost:8000/metrics         # with an operator's key, where there are keys
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import prometheus_client as prometheus
from fastapi import APIRouter, Depends
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatbot.api.schemas import ERROR_RESPONSES
from chatbot.metrics import Metrics

if TYPE_CHECKING:
    from chatbot.service import Service

COUNTED_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Any other is counted as "other": a label must not take words that a client makes up."""


def router(service: "Service", webhook_backlog: Callable[[], int]) -> APIRouter:
    """Return the route ``/metrics``, which is open to operators."""
    routes = APIRouter(tags=["health"], responses=ERROR_RESPONSES)
    operator = Depends(service.access.role_dependency("operator"))
    registry = service.metrics.registry(service, webhook_backlog)

    @routes.get("/metrics", dependencies=[operator], include_in_schema=False)
    def metrics() -> Response:
        """Return counters, gauges and histograms in Prometheus' text format."""
        text = prometheus.generate_latest(registry)
        return Response(text, headers={"content-type": prometheus.CONTENT_TYPE_LATEST})

    return routes


class RequestCountMiddleware:
    """Counts HTTP requests when their response begins, by method, route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._requests = app, metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; the chunks of a streamed response cost one comparison each."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        # The router writes its match into the scope, and a mounted app replaces scope["app"].
        api, started = scope["app"], False

        def counting_send(message: Message) -> Any:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._count(scope, api, message["status"])
            return send(message)

        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            if not started:
                self._count(scope, api, 500)
            raise

    def _count(self, scope: Scope, api: object, status: int) -> None:
        """Count one request under its route's template; all routes of the pages' app are one."""
        route = getattr(scope.get("route"), "path", "none") if scope["app"] is api else "pages"
        method = scope["method"] if scope["method"] in COUNTED_METHODS else "other"
        self._requests.labels(method, route, status).inc()
