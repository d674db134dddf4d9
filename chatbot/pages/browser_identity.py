"""Identifies the person at a browser by a signed token in its local storage.

The token is `person.signature`, so nobody can claim to be another person; the signing key is in the
home folder and survives restarts.
"""

from pathlib import Path

from chatbot.auth.signing_key import Signer, load_signing_key
from feedback.ids import new_id


class LoginName(str):
    """Holds the name of a person who has logged in. The server itself makes it, so it needs no
    token; what a browser sends is never one."""


class BrowserIdentities:
    """Issues tokens to browsers and verifies them."""

    def __init__(self, root: Path) -> None:
        self._signer = Signer(load_signing_key(root))
        self._issued: dict[str, str] = {}

    @property
    def storage_secret(self) -> str:
        """Return what the browser encrypts its storage with. It is sent to the browser, so it is
        not the key."""
        return self._signer.signature("storage")[:32]

    def issue(self) -> str:
        """Return a token for a browser that has none, and so for a new person."""
        return self._signer.sign(new_id("person"))

    def token_of_tab(self, session: str | None, token: object) -> str:
        """Return the token that a tab sends, or when it has none yet the one that was issued to it:
        who sends twice before the first view arrives is one person."""
        if isinstance(token, str) and self.verify(token) is not None:
            return token
        return self._issued.setdefault(session, self.issue()) if session else self.issue()

    def forget_tab(self, session: str) -> None:
        """Forget a tab that was closed."""
        self._issued.pop(session, None)

    def verify(self, token: object) -> str | None:
        """Return the person that a token names, None when we have not signed it."""
        return self._signer.unsign(token) if isinstance(token, str) else None

    def identify(self, token: object) -> tuple[str, str]:
        """Return (token, person): the given token when it is valid, else a new one.

        A `LoginName` is both.
        """
        if isinstance(token, LoginName):
            return token, str(token)
        person = self.verify(token)
        if person is not None:
            return str(token), person
        new_token = self.issue()
        return new_token, new_token.rpartition(".")[0]
