"""Tests signatures of what browsers keep: those issued once stay valid."""

from pathlib import Path

import pytest

from chatbot.auth.sessions import SessionCookies
from chatbot.auth.signing_key import KEY_FILE, Signer, SigningKeyError, load_signing_key
from chatbot.pages.browser_identity import BrowserIdentities
from tests.fixtures.disks import small_disk

TOKEN = "person-01kav3.f926eb0b71a70a937634541d874e106b71120d37f8a1448b30cbea1c32138c47"
STORAGE_SECRET = "9a5efb01acc460b9a44d929740344dab"
COOKIE = "key-01kav3.4102444800.66503f68ffa37631ec62ccde58a8edb368a3561f3d1d91554a0399419f285a0b"
FINGERPRINT = "token-24bccc2f1742bf0b5b5b926736839fc1"
"""As the first release issued them, with the key of the fixture."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a home whose signing key is known."""
    (tmp_path / KEY_FILE).write_bytes(bytes(range(32)))
    return tmp_path


def test_tokens_of_browsers_that_were_issued_long_ago_are_read(root: Path) -> None:
    assert BrowserIdentities(root).verify(TOKEN) == "person-01kav3"
    assert BrowserIdentities(root).storage_secret == STORAGE_SECRET


def test_cookies_that_were_issued_long_ago_are_read(root: Path) -> None:
    assert SessionCookies(root).read(COOKIE) == "key-01kav3"
    assert SessionCookies(root).fingerprint("owl") == FINGERPRINT


def test_what_is_signed_for_one_purpose_is_refused_for_another(root: Path) -> None:
    assert SessionCookies(root).read(TOKEN) is None
    assert BrowserIdentities(root).verify(COOKIE) is None


def test_a_value_without_a_signature_or_with_a_wrong_one_is_refused(root: Path) -> None:
    signer = Signer(load_signing_key(root))
    signed = signer.sign("person-1")
    assert signer.unsign(signed) == "person-1"
    for value in ("", ".", "person-1", signer.signature(""), signed[:-1], signed + "0"):
        assert signer.unsign(value) is None


def test_a_key_that_a_power_cut_emptied_is_refused(tmp_path: Path) -> None:
    """Signed with an empty key, anybody's token would be good."""
    load_signing_key(tmp_path)
    (tmp_path / KEY_FILE).write_bytes(b"")
    with pytest.raises(SigningKeyError, match=r"browser\.key .* 0 bytes of 32"):
        load_signing_key(tmp_path)


def test_a_key_that_the_disk_has_no_room_for_is_named_and_made_once_there_is(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        with pytest.raises(OSError, match="No space left"):
            (disk / "rest").write_bytes(bytes(17 * 1024))
        with pytest.raises(OSError, match=r"No space left.*browser\.key"):
            load_signing_key(disk)
        assert [file.name for file in disk.iterdir()] == ["rest"]
        (disk / "rest").unlink()
        assert len(load_signing_key(disk)) == 32
