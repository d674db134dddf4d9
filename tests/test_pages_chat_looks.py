"""Looks at the chat page in a real browser: text as typed, no harm done, notes, phones, themes."""

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, expect

from chatbot.pages.text import escape_markdown
from feedback.review.decisions import decide
from tests.fakes.scripted_engine import (
    ANSWER,
    ScriptedEngine,
    new_adapter,
    open_chat,
    send_and_wait,
)
from tests.fixtures.chat_page import last_answer_id
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from chatbot.service import Service


@pytest.mark.parametrize(
    "typed",
    [
        "**bold** _it_ `code`",
        "# no heading",
        "- no list\n- at all",
        "1. one\n\n2. two",
        "a\n\n    b",
        "[a](http://x.example) | b | <b>c</b>",
        "![x](http://127.0.0.1:9/a.png)",
        "2 * 3 * 4 = $24$",
    ],
)
def test_what_people_type_is_shown_as_typed(
    page: Page, chat_service: "Service", typed: str
) -> None:
    send_and_wait(page, typed)
    shown = page.locator("#tb-chat .user-row .prose")
    assert shown.evaluate("(shown) => shown.textContent") == typed.strip()
    assert shown.evaluate("(shown) => shown.children.length") == 0
    page.locator("#tb-chat .user-row").hover()
    page.locator("#tb-chat button[title=Edit]").first.click()
    expect(page.locator("#tb-chat textarea")).to_have_value(escape_markdown(typed.strip()))


def test_text_runs_in_its_own_direction(page: Page, chat_engine: ScriptedEngine) -> None:
    chat_engine.answers = ["نحن نفتح في التاسعة.", "At nine."]
    send_and_wait(page, "متى تفتحون؟")
    send_and_wait(page, "When do you open?")
    direction = "(text) => getComputedStyle(text).direction"
    bubbles = page.locator("#tb-chat [data-testid=user], #tb-chat [data-testid=bot]")
    assert [bubble.evaluate(direction) for bubble in bubbles.all()] == ["rtl", "rtl", "ltr", "ltr"]
    composer = page.locator("#tb-composer textarea")
    composer.fill("متى")
    assert composer.evaluate(direction) == "rtl"


@pytest.mark.parametrize(
    "attack",
    [
        "<script>document.title='pwned'</script>",
        "<img src=x onerror=\"document.title='pwned'\">",
        "![x](http://127.0.0.1:9/track.png)",
        "<iframe src=\"javascript:parent.document.title='pwned'\"></iframe>",
        "[click](javascript:document.title='pwned')",
    ],
)
def test_script_in_messages_and_answers_does_nothing(
    page: Page, chat_engine: ScriptedEngine, chat_url: str, attack: str
) -> None:
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    chat_engine.answers = [f"You said {attack}"]
    send_and_wait(page, attack)
    page.wait_for_timeout(300)
    assert "pwned" not in page.title()
    assert page.locator("#tb-chat .prose :is(img, script, iframe)").count() == 0
    assert page.locator("#tb-chat a[href^='javascript:']").count() == 0
    assert [address for address in requested if not address.startswith(chat_url)] == []


@pytest.mark.parametrize(
    "answer",
    [
        "`a\n\n![x](http://127.0.0.1:9/a.png) b`",
        "\\`![x](http://127.0.0.1:9/a.png)\\`",
        "text ``` ![x](http://127.0.0.1:9/a.png)",
        "`` ` ![x](http://127.0.0.1:9/a.png) `` ` <img src=http://127.0.0.1:9/b.png>",
        "~~~\n```\n~~~\n![x](http://127.0.0.1:9/a.png)\n```",
    ],
)
def test_no_picture_is_born_from_false_code_marks(
    page: Page, chat_engine: ScriptedEngine, chat_url: str, answer: str
) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    chat_engine.answers = [answer]
    send_and_wait(page, "Show me")
    page.wait_for_timeout(200)
    assert page.locator("#tb-chat .prose img").count() == 0
    assert [address for address in requested if not address.startswith(chat_url)] == []


def test_nothing_is_loaded_from_elsewhere(page: Page, chat_url: str) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.reload()
    page.wait_for_selector("#tb-chat .example")
    assert requested and all(
        address.startswith((chat_url, "data:", "blob:")) for address in requested
    )


def test_what_is_copied_is_what_was_said(page: Page, chat_engine: ScriptedEngine) -> None:
    answer = "Use <b> and ![x](y):\n\n```\n<p>!</p>\n```"
    chat_engine.answers = [answer]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    send_and_wait(page, "How?")
    copied = "navigator.clipboard.readText()"
    page.locator("#tb-chat button[title='Copy message']").last.click()
    wait_until(lambda: page.evaluate(copied) == answer)
    page.locator("#tb-chat .bot-row code").evaluate(
        "(code) => getSelection().selectAllChildren(code)"
    )
    page.keyboard.press("Control+c")
    wait_until(lambda: page.evaluate(copied).strip() == "<p>!</p>")


def test_an_approved_answer_is_marked_as_such(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers = ["We have none."]
    send_and_wait(page, "Where is your shop in Leeds?")
    decide(
        chat_service.store, last_answer_id(chat_service.store), "rita", "correct", "At 4 Mill Lane."
    )
    send_and_wait(page, "where is your shop in leeds")
    expect(page.locator(ANSWER).last).to_have_text("At 4 Mill Lane.")
    expect(page.locator(".tb-approved")).to_contain_text("Approved answer")


def test_a_new_adapter_takes_over_in_sight(page: Page, chat_service: "Service") -> None:
    send_and_wait(page, "Hello old one")
    adapter = new_adapter(chat_service, seed=7)
    chat_service.registry.promote(adapter, "person", "otto", "reads better")
    expect(page.locator("#tb-status")).to_contain_text(adapter)
    send_and_wait(page, "Hello new one")
    expect(page.locator(".tb-new")).to_have_text("A newer version speaks from here on")


def test_a_refused_adapter_is_said_to_be_refused(page: Page, chat_service: "Service") -> None:
    before = chat_service.speaking
    broken = new_adapter(chat_service, seed=8)
    (chat_service.home.adapters / broken / "adapter_model.safetensors").write_bytes(b"broken")
    chat_service.registry.promote(broken, "person", "otto", "by mistake")
    try:
        expect(page.locator("#tb-status .tb-warn")).to_contain_text("refused")
        assert str(chat_service.home.root) not in page.inner_text("#tb-status")
        assert chat_service.speaking == before
        expect(page.locator("#tb-status .tb-pill")).to_contain_text(before)
    finally:
        chat_service.registry.promote(before, "person", "otto", "back")


def test_the_theme_that_was_chosen_is_kept(page: Page) -> None:
    page.click("#tb-theme")
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    page.reload()
    expect(page.locator("body")).to_have_class(re.compile("dark"))


def test_a_phone_shows_the_whole_page_without_scrolling_sideways(
    chromium: Browser, chat_url: str
) -> None:
    size = {"width": 390, "height": 844}
    with open_chat(chromium, chat_url, viewport=size, color_scheme="dark", has_touch=True) as page:
        send_and_wait(page, "a" * 120)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        sizes = "(one) => [one.scrollWidth - one.clientWidth, one.scrollHeight - one.clientHeight]"
        assert page.locator(".tb-brand").evaluate(sizes) == [0, 0], "the title is cut"
        composer = page.locator("#tb-composer").bounding_box()
        assert composer is not None and composer["y"] + composer["height"] <= 844
        assert page.locator("body.dark").count() == 1


def test_on_a_phone_the_list_of_conversations_folds_once_something_is_picked(
    chromium: Browser, chat_url: str, chat_engine: ScriptedEngine
) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
    chat_engine.answers, chat_engine.pause, chat_engine.busy = ["We do."], 0.01, False
    with open_chat(chromium, chat_url, **phone) as page:
        send_and_wait(page, "Do you ship abroad?")
        for pick in ("#tb-new", "#tb-conversations label"):
            expect(page.locator("#tb-sidebar")).not_to_have_class(re.compile(r"\bopen\b"))
            page.click("#tb-sidebar .toggle-button")
            expect(page.locator("#tb-sidebar")).to_have_class(re.compile(r"\bopen\b"))
            page.click(pick)
        expect(page.locator("#tb-sidebar")).not_to_have_class(re.compile(r"\bopen\b"))
