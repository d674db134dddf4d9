"""Holds what a browser keeps after a login: a cookie that names a key or login until it expires.

The cookie is never the key itself, scripts cannot read it, and a key that is revoked ends it: what
it names is looked up at every request.
"""

import time
from pathlib import Path

from chatbot.auth.signing_key import Signer, load_signing_key

COOKIE_NAME = "talkback_session"
LIFETIME_SECONDS = 30 * 24 * 3600


class SessionCookies:
    """Issues and reads values of the session cookie: ``subject.expires.signature``."""

    def __init__(self, root: Path) -> None:
        # A derived key: the token of a browser's person is never accepted as a login.
        self._signer = Signer(load_signing_key(root), purpose=b"session")

    def issue(self, subject: str) -> str:
        """Return the value that stands for ``subject``, an id without a dot, from now on."""
        return self._signer.sign(f"{subject}.{int(time.time()) + LIFETIME_SECONDS}")

    def read(self, value: str | None) -> str | None:
        """Return the subject of a value, None when it is not signed by us or has expired."""
        text = self._signer.unsign(value or "")
        if text is None:
            return None
        subject, _, expires = text.rpartition(".")
        return subject if int(expires) > time.time() else None

    def fingerprint(self, secret: str) -> str:
        """Return an id for a secret from which the secret cannot be computed."""
        return f"token-{self._signer.signature(f'secret {secret}')[:32]}"
