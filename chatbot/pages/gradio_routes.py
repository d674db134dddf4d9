"""Removes from Gradio's app the routes that the pages do not use: uploads, files, proxies, the
programming interface, development.

A route that a newer Gradio adds is not there either, until it is listed here and in the table of
``tests/test_access_roles.py``.
"""

from fastapi import FastAPI
from starlette.routing import BaseRoute

from chatbot.auth import hub_login

USED_ROUTES = frozenset(
    {
        "/",
        "/review",
        "/review/",
        "/adapters",
        "/adapters/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/static/{path:path}",
        "/assets/{path:path}",
        "/gradio_api/app_id",  # after a lost connection: is it the same server?
        "/gradio_api/heartbeat/{session_hash}",
        "/gradio_api/queue/join",
        "/gradio_api/queue/data",
        "/gradio_api/run/{api_name}",
    }
)
HUB_LOGIN_ROUTES = frozenset({"/login/huggingface", "/login/callback", "/logout"})
"""Used where people log in with the Hub."""


def remove_unused_routes(app: FastAPI) -> None:
    """Keep those routes of Gradio's app that the pages use; call it before the first request."""
    used = USED_ROUTES | (HUB_LOGIN_ROUTES if hub_login.is_enabled() else set())

    def keep_used(routes: list[BaseRoute]) -> None:
        for route in list(routes):
            included = getattr(route, "original_router", None)  # FastAPI's, of include_router
            if included is not None:
                keep_used(included.routes)
            elif getattr(route, "path", None) not in used:
                routes.remove(route)

    keep_used(app.router.routes)
