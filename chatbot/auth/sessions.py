"""What a browser keeps after a login: who it is, until when, signed with the home's own key.

The cookie is never the key itself, scripts cannot read it, and a key that is revoked ends it: what
it names is looked up at every request.
"""

import hashlib
import hmac
import time
from pathlib import Path

from chatbot.pages.browser_identity import secret_of

COOKIE_NAME = "talkback_session"
LIFETIME_SECONDS = 30 * 24 * 3600
"""Seconds."""


class SessionCookies:
    """Writes and reads the cookie's value: ``subject.expires.signature``."""

    def __init__(self, root: Path) -> None:
        # Signed with a key of its own: no token of a browser's person is ever taken for a login.
        self._key = hmac.new(secret_of(root), b"session", hashlib.sha256).digest()

    def issue(self, subject: str) -> str:
        """The value that stands for ``subject``, which is an id and has no dot."""
        text = f"{subject}.{int(time.time()) + LIFETIME_SECONDS}"
        return f"{text}.{self._sign(text)}"

    def read(self, value: str | None) -> str | None:
        """Whom a value stands for; None when it is not ours, or over."""
        text, _, signature = (value or "").rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return None
        subject, _, expires = text.rpartition(".")
        return subject if int(expires) > time.time() else None

    def fingerprint(self, secret: str) -> str:
        """A name for a secret that tells nothing of it."""
        return f"token-{self._sign(f'secret {secret}')[:32]}"

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
