"""Sends messages on the chat page in a real browser: what is sent is asked once, and never lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.fakes.scripted_engine import (
    ANSWER,
    ScriptedEngine,
    send_and_wait,
    send_message,
    wait_until_idle,
)
from tests.fixtures.chat_page import SLOW, stays

if TYPE_CHECKING:
    from chatbot.service import Service


@pytest.mark.parametrize("text", ["", "   ", "\n\n"])
def test_to_send_nothing_changes_nothing(page: Page, text: str) -> None:
    send_and_wait(page, "About gardens")
    known = page.evaluate("localStorage.getItem('talkback_person')")
    send_message(page, text)
    page.wait_for_timeout(300)
    assert page.evaluate("localStorage.getItem('talkback_person')") == known
    expect(page.locator("#tb-chat .user-row")).to_have_text("About gardens")
    send_and_wait(page, "About houses")
    page.reload()
    expect(page.locator("#tb-conversations label")).to_have_text(["About gardens"])
    expect(page.locator("#tb-chat .user-row")).to_have_count(2)


def test_an_example_question_is_asked_with_one_click(
    page: Page, chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers = ["Yes, to all of Europe."]
    page.locator("#tb-chat .example", has_text="Do you ship abroad?").click()
    expect(page.locator(ANSWER)).to_have_text("Yes, to all of Europe.")
    expect(page.locator("#tb-chat .user-row")).to_have_text("Do you ship abroad?")


def test_two_enters_at_once_ask_once(page: Page, chat_service: "Service") -> None:
    before = chat_service.store.counts()["messages"]
    page.fill("#tb-composer textarea", "When do you open?")
    page.evaluate(
        """() => {
            const composer = document.querySelector("#tb-composer textarea");
            const enter = { key: "Enter", bubbles: true, cancelable: true };
            composer.dispatchEvent(new KeyboardEvent("keypress", enter));
            composer.dispatchEvent(new KeyboardEvent("keypress", enter));
        }"""
    )
    expect(page.locator(ANSWER)).to_have_count(1)
    stays(page, ANSWER, 1)
    assert chat_service.store.counts()["messages"] == before + 2


def test_enter_that_ends_a_word_of_an_input_method_sends_nothing(page: Page) -> None:
    page.fill("#tb-composer textarea", "にほん")
    page.evaluate(
        """() => {
            const composer = document.querySelector("#tb-composer textarea");
            for (const kind of ["keydown", "keypress"]) {
                const enter = { key: "Enter", bubbles: true, cancelable: true, isComposing: true };
                composer.dispatchEvent(new KeyboardEvent(kind, enter));
            }
        }"""
    )
    stays(page, "#tb-chat .user-row", 0)
    expect(page.locator("#tb-composer textarea")).to_have_value("にほん")


def test_what_is_sent_before_the_page_has_loaded_stays(chromium: Browser, chat_url: str) -> None:
    page = chromium.new_page(locale="en-US")
    with held_requests(page, "**/queue/join*") as held:
        with page.expect_request("**/queue/join*"):
            page.goto(chat_url)
        send_and_wait(page, "Quick")
        person = page.evaluate("localStorage.talkback_person")
        with page.expect_event("requestfailed", lambda one: "heartbeat" in one.url):
            page.evaluate("dispatchEvent(new Event('beforeunload'))")  # as a reload begins
        held[0].continue_()
        stays(page, "#tb-chat .user-row", 1)
    assert page.evaluate("localStorage.talkback_person") == person
    page.reload()
    expect(page.locator("#tb-chat .user-row")).to_contain_text("Quick")
    page.close()


@contextmanager
def held_requests(page: Page, pattern: str) -> Iterator[list[Route]]:
    """Hold the first request to a path, which the block lets go by `continue_`."""
    held: list[Route] = []
    page.route(pattern, lambda route: route.continue_() if held else held.append(route))
    yield held
    page.unroute(pattern)


@pytest.mark.parametrize("known", [False, True])
def test_what_is_sent_while_the_loaded_page_is_on_its_way_is_asked_once(
    chromium: Browser,
    chat_url: str,
    chat_service: "Service",
    chat_engine: ScriptedEngine,
    known: bool,
) -> None:
    chat_engine.answers, chat_engine.pause, chat_engine.busy = [], 0.01, False
    context = chromium.new_context(locale="en-US")
    page = context.new_page()
    if known:
        page.goto(chat_url)
        send_and_wait(page, "Before")
    before = chat_service.store.counts()["messages"]
    with held_requests(page, "**/queue/data*") as held:
        with page.expect_request("**/queue/data*"):
            page.goto(chat_url)
        for _ in range(2):
            with page.expect_response("**/queue/join*"):
                send_message(page, "Quick")
        held[0].continue_()
        expect(page.locator("#tb-chat .user-row").last).to_contain_text("Quick")
        wait_until_idle(page)
    stays(page, "#tb-chat .user-row", 1 + known)
    assert chat_service.store.counts()["messages"] == before + 2
    page.reload()
    expect(page.locator("#tb-chat .user-row")).to_have_count(1 + known)
    expect(page.locator("#tb-conversations label")).to_have_count(1)
    context.close()


def test_a_draft_outlives_a_reload_and_enter_while_an_answer_streams(
    page: Page, chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers, chat_engine.pause = [SLOW], 0.05
    send_message(page, "About gardens")
    expect(page.locator(ANSWER)).to_contain_text("word3")
    send_message(page, "And ponds?")
    page.reload()
    composer = page.locator("#tb-composer textarea")
    expect(composer).to_have_value("And ponds?")
    wait_until_idle(page)
    expect(page.locator("#tb-chat .user-row")).to_have_count(1)
    composer.press("Enter")
    expect(page.locator("#tb-chat .user-row")).to_have_count(2)
    page.reload()
    expect(page.locator("#tb-chat .user-row")).to_have_count(2)
    expect(composer).to_have_value("")


def test_a_busy_bot_says_so_and_gives_the_words_back(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.busy = True
    before = chat_service.store.counts()["messages"]
    send_message(page, "Are you there?")
    expect(page.locator("#tb-notice")).to_contain_text("Try again")
    expect(page.locator("#tb-composer textarea")).to_have_value("Are you there?")
    assert chat_service.store.counts()["messages"] == before
    chat_engine.busy = False
    page.press("#tb-composer textarea", "Enter")
    expect(page.locator(ANSWER)).to_have_count(1)
    expect(page.locator("#tb-notice")).to_be_hidden()
