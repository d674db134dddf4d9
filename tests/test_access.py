"""Tests the rules of access: who a request is from, and which role it has."""

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from chatbot.auth import api_keys
from chatbot.auth.access import Access, Caller
from chatbot.auth.hub_login import hub_username
from chatbot.auth.sessions import COOKIE_NAME, SessionCookies
from chatbot.pages.browser_identity import BrowserIdentities, LoginName
from feedback.settings import Home
from feedback.store import Store


def request(host: str = "127.0.0.1", **headers: str) -> HTTPConnection:
    """Return a request as ASGI has it."""
    headers = {"host": "127.0.0.1:8000", **headers}
    raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    return HTTPConnection({"type": "http", "client": (host, 5), "headers": raw})


class TestRules:
    """Tests the access rules without a access_server."""

    def test_all_is_open_on_loopback_until_there_is_a_key(self, store: Store, home: Home) -> None:
        access = Access(store, home.root)
        assert access.identify(request()).role == "operator"
        assert access.identify(request()).person_named("ann") == "ann"
        made = api_keys.create(store, "ann", "user")
        assert access.identify(request()).role == "user"
        api_keys.revoke(store, made.id)
        assert access.identify(request()).role == "user"

    @pytest.mark.parametrize(
        ("host", "settings"),
        [
            ("127.0.0.1", {"loopback": False}),
            ("127.0.0.1", {"token": "owl"}),
            ("192.0.2.7", {}),
            ("elsewhere", {}),
        ],
    )
    def test_nothing_is_open_where_others_reach_it(
        self, store: Store, home: Home, host: str, settings: Any
    ) -> None:
        access = Access(store, home.root, **settings)
        assert access.identify(request(host)) == Caller("user", "anonymous")
        closed = Access(store, home.root, anonymous=False, **settings)
        assert closed.identify(request(host)).role is None

    def test_the_review_token_is_an_operators_key_until_it_changes(
        self, store: Store, home: Home
    ) -> None:
        access = Access(store, home.root, token="owl")
        assert access.identify(request(authorization="Bearer owl")).role == "operator"
        assert access.identify(request(authorization="Bearer howl")).role == "user"
        known = access.log_in(request(), "owl")
        cookie = f"{COOKIE_NAME}={access.sessions.issue(known.id)}"
        assert access.identify(request(cookie=cookie)).role == "operator"
        changed = Access(store, home.root, token="eagle")
        assert changed.identify(request(cookie=cookie)).role == "user"

    def test_a_login_counts_for_our_own_pages_alone(self, store: Store, home: Home) -> None:
        access = Access(store, home.root)
        made = api_keys.create(store, "rita", "reviewer")
        cookie = f"{COOKIE_NAME}={access.sessions.issue(made.id)}"
        for site, role in (
            ("same-origin", "reviewer"),
            ("none", "reviewer"),
            ("cross-site", "user"),
            ("same-site", "user"),
        ):
            assert access.identify(request(cookie=cookie, sec_fetch_site=site)).role == role

    def test_no_login_can_be_made_up(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        sessions = SessionCookies(home.root)
        good = sessions.issue("key-1")
        assert sessions.read(good) == "key-1"
        person = BrowserIdentities(home.root).issue()
        for bad in (None, "", "key-1", ".", "..", good[:-1], good.replace("1", "2", 1), person):
            assert sessions.read(bad) is None
        monkeypatch.setattr("time.time", lambda: 1e11)
        assert sessions.read(good) is None

    def test_a_name_that_a_browser_sends_is_no_login(self, home: Home) -> None:
        people = BrowserIdentities(home.root)
        assert people.identify("ann")[1] != "ann"
        assert people.identify(LoginName("ann"))[1] == "ann"

    def test_names_of_the_hub_have_roles_on_a_space(
        self, store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        access = Access(store, home.root, reviewers=["rita"], operators=["otto"], anonymous=False)
        roles = {name: access._hub_caller(name) for name in ("ann", "rita", "otto")}
        assert [c and c.role for c in roles.values()] == ["user", "reviewer", "operator"]
        assert access._hub_caller(None) is None
        info = {"userinfo": {"preferred_username": "rita"}, "expires_at": 1e11}
        scope = {"session": {"oauth_info": info}}
        assert hub_username(scope) is None  # no Space
        monkeypatch.setattr("chatbot.auth.hub_login.is_enabled", lambda: True)
        assert hub_username(scope) == "rita" and hub_username({}) is None
        assert hub_username({"session": {"oauth_info": {**info, "expires_at": 1}}}) is None
