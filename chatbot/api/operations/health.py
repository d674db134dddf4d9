"""Tells whether the server lives and whether it can answer.

    curl localhost:8000/healthz         # 200 while the process lives, also while it loads
    curl localhost:8000/readyz          # 200, or 503 with the reason: send no traffic

A supervisor that restarts servers asks ``/healthz``, a load balancer ``/readyz``. An engine that
fails or stands still is the server's to restart: ``/healthz`` stays 200 meanwhile.
"""

import threading
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from chatbot.api.schemas import ERROR_RESPONSES, ReadinessResponse
from feedback.db.database import StoreError
from feedback.store import Store

if TYPE_CHECKING:
    from chatbot.service import Service

WRITE_PROBE_SECONDS = 1.0
"""How long the result of one try to write is good for."""


def liveness_router(service: "Service") -> APIRouter:
    """Return the route ``/healthz``."""
    routes = APIRouter(tags=["health"], responses=ERROR_RESPONSES)

    @routes.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Tell that the process lives, which adapter is in service and what computes it; /readyz
        tells more."""
        return {
            "ok": True,
            "status": "ready",
            "adapter": service.speaking,
            "base": service.base.name,
            "base_revision": service.base.revision,
            "warning": service.warning,
            "engine": service.computed_by,
        }

    return routes


def readiness_router(service: "Service") -> APIRouter:
    """Return the route ``/readyz``."""
    routes = APIRouter(tags=["health"], responses=ERROR_RESPONSES)
    database = WriteProbe(service.store)

    @routes.get("/readyz", response_model=ReadinessResponse)
    def readyz() -> JSONResponse:
        """Tell whether to send traffic here: the engine has made a token since it last failed, and
        the database can be written."""
        reason = service.rollout.readiness.unavailable_reason or database.error()
        ready = {"ready": not reason, "adapter": service.speaking, "warning": service.warning}
        if reason:
            return JSONResponse({**ready, "reason": reason}, 503, {"Retry-After": "1"})
        return JSONResponse(ready)

    return routes


class WriteProbe:
    """Tells whether the database can be written, trying at most once a second: a try writes to the
    disk, and the route is open to everybody."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._checked_at: float | None = None
        self._error = ""

    def error(self) -> str:
        """Return why the database cannot be written, "" when it can."""
        with self._lock:
            now = time.monotonic()
            if self._checked_at is None or now - self._checked_at > WRITE_PROBE_SECONDS:
                self._error = self._check()
                self._checked_at = time.monotonic()
            return self._error

    def _check(self) -> str:
        try:
            self._store.check_writable()
        except StoreError as error:
            return str(error)
        return ""
