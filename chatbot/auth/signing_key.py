"""Signs what browsers keep: the key in the home folder, and values with an HMAC of them appended.

    signer = Signer(load_signing_key(home.root))
    signer.unsign(signer.sign("person-1"))       # "person-1"; None for a value of somebody else's

The key survives restarts, so that tokens and cookies that were issued once stay valid.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from feedback.errors import TalkbackError, name_file
from feedback.publish import make_file, make_folder, sync

KEY_FILE = "browser.key"
KEY_BYTES = 32


class SigningKeyError(TalkbackError):
    """Reports a key file that is damaged: what it signed could be anybody's."""


class Signer:
    """Signs texts as ``text.signature``, with HMAC-SHA256 in hexadecimal digits, and reads them.

    ``purpose`` derives a key of its own from ``key``, so that what is signed for one purpose is
    never accepted for another; without one, ``key`` itself signs.
    """

    def __init__(self, key: bytes, purpose: bytes = b"") -> None:
        self._key = hmac.new(key, purpose, hashlib.sha256).digest() if purpose else key

    def signature(self, text: str) -> str:
        """Return the 64 hexadecimal digits that sign ``text``."""
        return hmac.new(self._key, _encode(text), hashlib.sha256).hexdigest()

    def sign(self, text: str) -> str:
        """Return ``text`` with its signature after a dot."""
        return f"{text}.{self.signature(text)}"

    def unsign(self, value: str) -> str | None:
        """Return the text of a signed value, None when the signature is not ours."""
        text, dot, signature = value.rpartition(".")
        # Compared in constant time: how long it takes tells nothing of the right signature.
        good = hmac.compare_digest(_encode(signature), self.signature(text).encode())
        return text if dot and good else None


def _encode(text: str) -> bytes:
    """Encode any text, no two alike: what a browser sends may hold half of a character."""
    return text.encode("utf-8", "surrogatepass")


def load_signing_key(root: Path) -> bytes:
    """Load the key of 32 bytes from the home folder ``root``, which makes it at first use.

    The key is written to a draft and linked in its final place, which fails where a file is
    already: of two processes that start at the same time one makes the key, and both read it whole.
    Raises SigningKeyError for a file that is too short.
    """
    path = root / KEY_FILE
    make_folder(root)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        make_file(draft)
        try:
            draft.write_bytes(secrets.token_bytes(KEY_BYTES))
            sync(draft)  # an empty file after a power cut would be a key that everybody knows
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError as error:
            raise name_file(error, path) from error
        finally:
            draft.unlink()
    key = path.read_bytes()
    if len(key) < KEY_BYTES:
        raise SigningKeyError(
            f"{path} holds {len(key)} bytes of {KEY_BYTES}. Put it back from a backup; or remove "
            "it, and everybody starts without the conversations they had."
        )
    return key
