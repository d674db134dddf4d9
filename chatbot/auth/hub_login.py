"""Reads logins with the Hugging Face Hub, on a Space whose front matter says ``hf_oauth: true``.

Gradio runs the login and keeps it in a signed session of its own; here it is only read.
"""

import functools
import importlib.util
import logging
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse

log = logging.getLogger("talkback")


@functools.cache
def is_enabled() -> bool:
    """Tell whether people can log in with the Hub here. Elsewhere Gradio's login button raises."""
    wanted = os.environ.get("SYSTEM") == "spaces" and bool(os.environ.get("OAUTH_CLIENT_ID"))
    if wanted and importlib.util.find_spec("authlib") is None:
        log.warning("no logins with Hugging Face: install talkback[space]")
        return False
    return wanted


def hub_username(scope: Mapping[str, Any]) -> str | None:
    """Return the Hub's name of who sends a request, None for whoever has not logged in with it."""
    info = scope.get("session", {}).get("oauth_info") if is_enabled() else None
    if not info or info.get("expires_at", 0) <= time.time():
        return None
    return str(info["userinfo"]["preferred_username"])


def exception_handlers() -> dict[Any, Any]:
    """Return handlers for logins that fail, by their exception: Gradio's callback has none for
    people who decline at the Hub."""
    if not is_enabled():
        return {}
    from authlib.integrations.base_client.errors import OAuthError  # type: ignore[import-untyped]

    return {OAuthError: _redirect_back}


async def _redirect_back(request: Request, error: Exception) -> RedirectResponse:
    """Redirect to the page they came from; only its path is used, so never to another site."""
    log.warning("a login with Hugging Face ended without one: %s", error)
    path = urlsplit(request.query_params.get("_target_url", "")).path
    return RedirectResponse("/" + path.lstrip("/\\"), status_code=303)
