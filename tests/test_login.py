"""Tests logins as on a Hugging Face Space, in a browser, with a real OpenID provider."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect

from feedback.settings import Home
from feedback.store import Store
from tests.fakes.openid_provider import CLIENT, SECRET, serve_provider
from tests.fixtures.server_process import ServerProcess


@pytest.fixture
def space(start_server: Callable[..., ServerProcess], home: Home) -> Iterator[str]:
    """Start a server in the environment of a Space on which rita may review; yield its address."""
    home.toml.write_text(
        home.toml.read_text() + '[server]\nanonymous = false\nreviewers = ["rita"]\n'
        'review_token = "open sesame"\n'
    )
    with serve_provider() as url:
        server = start_server(
            SYSTEM="spaces",
            SPACE_ID="ann/bot",
            OAUTH_CLIENT_ID=CLIENT,
            OAUTH_CLIENT_SECRET=SECRET,
            OAUTH_SCOPES="openid profile",
            OPENID_PROVIDER_URL=url,
        )
        yield server.ready().url


@contextmanager
def sign_in(chromium: Browser, page: str, answer: str) -> Iterator[Page]:
    """Open a page, sign in from it and give `answer` at the Hub; yield the page."""
    context = chromium.new_context(locale="en-US")
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    tab.goto(page)
    tab.get_by_text("Sign in with Hugging Face").click()
    tab.get_by_role("link", name=answer).click()
    yield tab
    context.close()


def test_people_of_the_hub_come_in_by_their_names(
    chromium: Browser, space: str, home: Home
) -> None:
    with sign_in(chromium, f"{space}/review", "rita") as rita:
        expect(rita).to_have_url(f"{space}/review")
        expect(rita.get_by_text("All caught up")).to_be_visible()
        rita.get_by_text("Log out (hf:rita)").click()
        expect(rita.get_by_placeholder("Key", exact=True)).to_be_visible()
        rita.reload()
        expect(rita.get_by_placeholder("Key", exact=True)).to_be_visible()
    with sign_in(chromium, space, "ann") as ann:
        expect(ann.locator("#tb-leave")).to_have_text("Log out (hf:ann)")
        ann.fill("#tb-composer textarea", "When do you open?")
        ann.keyboard.press("Enter")
        expect(ann.locator("#tb-conversations label")).to_have_text("When do you open?")
        ann.goto(f"{space}/review")
        expect(ann.get_by_text("This needs a key of role reviewer")).to_be_visible()
    store = Store(home.db)
    assert len(store.conversations("hf:ann")) == 1
    store.close()


def test_who_says_no_at_the_hub_is_back_where_they_came_from(chromium: Browser, space: str) -> None:
    with sign_in(chromium, f"{space}/review", "Deny") as tab:
        expect(tab).to_have_url(f"{space}/review")
        expect(tab.get_by_placeholder("Key", exact=True)).to_be_visible()
        denied = "/login/callback?error=access_denied&_target_url=//elsewhere.example/x"
        tab.goto(space + denied)
        expect(tab).to_have_url(f"{space}/x")
