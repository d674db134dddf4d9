"""Who sits at the browser: a signed token in its local storage, so that nobody can name another.

The token is `person.signature`; the signing key lives in the home folder and survives restarts.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from feedback.ids import new_id

KEY_FILE = "browser.key"


class LoginName(str):
    """The name of a person who has logged in: the server's own word, so it needs no token. What a
    browser sends is never one."""


class BrowserIdentities:
    """Issues tokens to browsers and reads them back."""

    def __init__(self, root: Path) -> None:
        self._key = secret_of(root)

    @property
    def storage_secret(self) -> str:
        """What the browser scrambles its storage with; it travels to the browser, so no key."""
        return self._sign("storage")[:32]

    def issue(self) -> str:
        """A token for a browser that has none."""
        person = new_id("person")
        return f"{person}.{self._sign(person)}"

    def verify(self, token: object) -> str | None:
        """The person a token names, None when it is not one of ours."""
        if not isinstance(token, str) or "." not in token:
            return None
        person, _, signature = token.rpartition(".")
        good = hmac.compare_digest(signature.encode(), self._sign(person).encode())
        return person if good else None

    def identify(self, token: object) -> tuple[str, str]:
        """(token, person): the given token when it is good, else a new one; or who logged in."""
        if isinstance(token, LoginName):
            return token, str(token)
        person = self.verify(token)
        if person is not None:
            return str(token), person
        fresh = self.issue()
        return fresh, fresh.rpartition(".")[0]

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def secret_of(root: Path) -> bytes:
    """The key in the home's file, made at first use; of two processes that start at once, one
    makes it."""
    path = root / KEY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        draft.touch(mode=0o600)
        draft.write_bytes(secrets.token_bytes(32))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes()
