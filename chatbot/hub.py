"""Logins with the Hugging Face Hub, on a Space whose front matter says ``hf_oauth: true``.

Gradio runs the login and keeps it in a signed session of its own; here it is only read.
"""

import functools
import importlib.util
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("talkback")


@functools.cache
def logins() -> bool:
    """Whether people can log in with the Hub here. Elsewhere Gradio's button raises."""
    wanted = os.environ.get("SYSTEM") == "spaces" and bool(os.environ.get("OAUTH_CLIENT_ID"))
    if wanted and importlib.util.find_spec("authlib") is None:
        log.warning("no logins with Hugging Face: install talkback[space]")
        return False
    return wanted


def visitor_of(scope: Mapping[str, Any]) -> str | None:
    """The Hub's name of who sends a request, None for whoever has not logged in with it."""
    info = scope.get("session", {}).get("oauth_info") if logins() else None
    if not info or info.get("expires_at", 0) <= time.time():
        return None
    return str(info["userinfo"]["preferred_username"])
