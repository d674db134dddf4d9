"""Uses the chat page as several people: each has their own conversations, by a token or a key."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Page, expect

from chatbot.auth import api_keys
from chatbot.auth.access import Access
from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat.actions import ChatActions
from chatbot.pages.chat.running import RunningAnswers
from chatbot.pages.chat.view import BrowserPosition, ChatView
from tests.fakes.scripted_engine import (
    ANSWER,
    ScriptedEngine,
    open_chat,
    open_service,
    send_and_wait,
    serve_pages,
)

if TYPE_CHECKING:
    from chatbot.service import Service


def test_conversations_are_listed_survive_a_reload_and_belong_to_one_person(
    page: Page, chromium: Browser, chat_url: str
) -> None:
    send_and_wait(page, "About gardens")
    page.click("#tb-new")
    expect(page.locator("#tb-chat .user-row")).to_have_count(0)
    send_and_wait(page, "About houses")
    page.reload()
    expect(page.locator("#tb-chat .user-row")).to_have_text("About houses")
    expect(page.locator("#tb-conversations label")).to_have_text(["About houses", "About gardens"])
    page.locator("#tb-conversations label", has_text="About gardens").click()
    expect(page.locator("#tb-chat .user-row")).to_have_text("About gardens")
    with open_chat(chromium, chat_url) as other:
        expect(other.locator("#tb-conversations label")).to_have_count(0)
        expect(other.locator("#tb-chat .example")).to_have_count(2)


def test_the_chat_works_where_the_browser_denies_storage(
    chromium: Browser, chat_url: str, chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers, chat_engine.pause, chat_engine.busy = ["At nine.", "At five."], 0.01, False
    page = chromium.new_context(locale="en-US").new_page()
    page.add_init_script(
        """Object.defineProperty(window, "localStorage", {
            configurable: true,
            get() { throw new DOMException("denied", "SecurityError"); },
        })"""
    )
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(chat_url)
    expect(page.locator("#tb-chat .example")).to_have_count(2)
    send_and_wait(page, "When do you open?")
    send_and_wait(page, "When do you close?")
    expect(page.locator(ANSWER)).to_have_text(["At nine.", "At five."])
    expect(page.locator("#tb-conversations label")).to_have_count(1)
    page.click("#tb-theme")
    assert failures == []
    page.context.close()


def test_an_old_list_of_conversations_that_arrives_late_is_not_shown(
    chromium: Browser,
    chat_url: str,
    chat_engine: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat_engine.answers, chat_engine.pause, chat_engine.busy = ["At nine."], 0.01, False
    sent, load = threading.Event(), ChatActions.load

    def load_late(*args: Any) -> Iterator[ChatView]:
        views = list(load(*args))
        assert sent.wait(30)
        yield from views

    monkeypatch.setattr(ChatActions, "load", load_late)
    page = chromium.new_context(locale="en-US").new_page()
    page.goto(chat_url)
    expect(page.locator("#tb-chat .example")).to_have_count(2)
    send_and_wait(page, "When do you open?")
    sent.set()
    send_and_wait(page, "And on Sundays?")
    expect(page.locator("#tb-conversations label")).to_have_text("When do you open?")
    page.context.close()


def test_a_forged_token_or_place_opens_nothing_of_another_person(chat_service: "Service") -> None:
    identities = BrowserIdentities(chat_service.home.root)
    store = chat_service.store
    token, ann = identities.identify(None)
    conversation = store.start_conversation(ann, "Secret")
    question = store.add_message(conversation, None, "user", "Secret")
    stored = BrowserPosition(conversation, question).to_storage()
    actions = ChatActions(chat_service, identities, RunningAnswers(chat_service.group_commit))
    (view,) = actions.load(token, stored, "tab of ann")
    assert view["position"].leaf == question and len(view["bubbles"]) == 1
    for forged in (f"{ann}.0000", ann, None, 7, identities.issue()):
        (view,) = actions.load(forged, stored, f"tab of {forged}")
        assert view["position"].conversation is None and view["bubbles"] == []
        (view,) = actions.open_conversation(forged, conversation, "tab")
        assert view["position"].conversation is None and view["bubbles"] == []


def test_the_signing_key_survives_a_restart_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    token = BrowserIdentities(tmp_path).issue()
    assert BrowserIdentities(tmp_path).verify(token) is not None
    assert (tmp_path / "browser.key").stat().st_mode & 0o077 == 0


def test_a_chat_for_people_with_keys_asks_for_one_and_knows_them_on_every_device(
    chromium: Browser, tmp_path: Path
) -> None:
    service = open_service(tmp_path, ScriptedEngine(["At nine."]))
    service.access = Access(service.store, service.home.root, anonymous=False)
    ann = api_keys.create(service.store, "ann", "user")
    with serve_pages(service) as address:
        first, second = (log_in(chromium, address, ann.secret) for _ in range(2))
        send_and_wait(first, "When do you open?")
        second.reload()
        expect(second.locator("#tb-conversations label")).to_have_text("When do you open?")
        assert [talk.title for talk in service.store.conversations("ann")] == ["When do you open?"]
        for page in (first, second):
            page.context.close()


def log_in(chromium: Browser, url: str, key: str) -> Page:
    """Open the chat page in a new browser and log in with a key."""
    page = chromium.new_context(locale="en-US").new_page()
    page.set_default_timeout(30_000)
    page.goto(url)
    page.get_by_placeholder("Key", exact=True).fill(key)
    assert page.locator("#tb-composer").count() == 0
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#tb-leave")).to_have_text("Log out (ann)")
    return page
