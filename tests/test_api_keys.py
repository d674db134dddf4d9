"""Tests API keys: what is stored, what they open, how they end; then the command line."""

import json
from pathlib import Path

import pytest

from chatbot.auth import api_keys
from chatbot.auth.api_keys import ApiKeyError
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.command_line import run_talkback


def test_a_key_is_known_by_its_secret_until_it_is_revoked(store: Store) -> None:
    made = api_keys.create(store, "rita", "reviewer")
    found = api_keys.find_by_secret(store, made.secret)
    assert found is not None and (found.name, found.role) == ("rita", "reviewer")
    assert api_keys.find_by_secret(store, made.secret[:-1]) is None
    revoked = api_keys.revoke(store, made.prefix)
    assert revoked.revoked_at and api_keys.find_by_secret(store, made.secret) is None
    assert api_keys.find_by_id(store, made.id) is None
    assert [key.revoked_at for key in api_keys.list_all(store)] == [revoked.revoked_at]


def test_a_secret_has_more_chance_than_anybody_can_guess(store: Store) -> None:
    secrets = {api_keys.create(store, "ann", "user").secret for _ in range(50)}
    assert len(secrets) == 50
    unseen = {len(secret) - len(api_keys.list_all(store)[0].prefix) for secret in secrets}
    assert min(unseen) * 6 >= 128  # bits: each character is one of 64


def test_no_file_of_the_home_holds_a_secret(store: Store, home: Home) -> None:
    secret = api_keys.create(store, "otto", "operator").secret.encode()
    store.close()
    files = [path for path in home.root.rglob("*") if path.is_file()]
    assert files and not any(secret[11:] in path.read_bytes() for path in files)


def test_the_last_key_revoked_still_counts_as_made(store: Store) -> None:
    assert not api_keys.any_exist(store)
    api_keys.revoke(store, api_keys.create(store, "ann", "user").id)
    assert api_keys.any_exist(store)


@pytest.mark.parametrize("name", ["", " ", "ann/bob", "hf:ann", "anonymous", "x" * 81, "a\nb"])
def test_a_name_that_could_be_mistaken_for_another_is_refused(store: Store, name: str) -> None:
    with pytest.raises(ApiKeyError, match="cannot name a key"):
        api_keys.create(store, name, "user")
    assert api_keys.list_all(store) == []


def test_what_cannot_be_revoked_is_said(store: Store) -> None:
    made = api_keys.create(store, "ann", "user")
    api_keys.revoke(store, made.id)
    with pytest.raises(ApiKeyError, match="revoked already"):
        api_keys.revoke(store, made.prefix)
    with pytest.raises(ApiKeyError, match="no key has the id or prefix 'tb-'"):
        api_keys.revoke(store, "tb-")
    with pytest.raises(ApiKeyError, match="unknown role 'king'"):
        api_keys.create(store, "ann", "king")


def test_the_command_line_makes_lists_and_revokes(home: Home, store: Store, tmp_path: Path) -> None:
    made = run_talkback(home, "keys", "add", "rita", "--role", "reviewer")
    (secret,) = [line for line in made.stdout.split() if line.startswith("tb-")]
    found = api_keys.find_by_secret(store, secret)
    assert found is not None and (found.name, found.role) == ("rita", "reviewer")
    (listed,) = json.loads(run_talkback(home, "keys", "list", "--json").stdout)
    assert listed["prefix"] == found.prefix and listed["revoked_at"] is None
    shown = run_talkback(home, "keys", "list").stdout
    assert "rita" in shown and secret not in shown
    assert run_talkback(home, "keys", "revoke", found.prefix).returncode == 0
    assert api_keys.find_by_secret(store, secret) is None
    again = run_talkback(home, "keys", "revoke", found.prefix)
    assert again.returncode == 2 and "revoked already" in again.stderr
    assert "Traceback" not in again.stderr
