"""Who sits at the browser: a signed token in its local storage, so that nobody can name another.

The token is `person.signature`; the signing key lives in the home folder and survives restarts.
"""

from pathlib import Path

from chatbot.auth.signing_key import Signer, load_signing_key
from feedback.ids import new_id


class LoginName(str):
    """The name of a person who has logged in: the server's own word, so it needs no token. What a
    browser sends is never one."""


class BrowserIdentities:
    """Issues tokens to browsers and reads them back."""

    def __init__(self, root: Path) -> None:
        self._signer = Signer(load_signing_key(root))

    @property
    def storage_secret(self) -> str:
        """What the browser scrambles its storage with; it travels to the browser, so no key."""
        return self._signer.signature("storage")[:32]

    def issue(self) -> str:
        """A token for a browser that has none."""
        return self._signer.sign(new_id("person"))

    def verify(self, token: object) -> str | None:
        """The person a token names, None when it is not one of ours."""
        return self._signer.unsign(token) if isinstance(token, str) else None

    def identify(self, token: object) -> tuple[str, str]:
        """(token, person): the given token when it is good, else a new one; or who logged in."""
        if isinstance(token, LoginName):
            return token, str(token)
        person = self.verify(token)
        if person is not None:
            return str(token), person
        fresh = self.issue()
        return fresh, fresh.rpartition(".")[0]
