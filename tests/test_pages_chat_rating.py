"""Rates and corrects answers on the chat page in a real browser: what is stored, what is shown."""

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, expect

from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat.rating import RatingActions
from chatbot.pages.chat.running import RunningAnswers
from chatbot.pages.chat.view import ChatViews
from chatbot.pages.text import escape_markdown
from feedback.messages import Speaker
from feedback.review.decisions import decide
from tests.fakes.scripted_engine import (
    ANSWER,
    ScriptedEngine,
    send_and_wait,
    send_message,
    wait_until_idle,
)
from tests.fixtures.chat_page import (
    LONG,
    click_button,
    edit_last_question,
    feedback_of_kind,
    last_answer_id,
)
from tests.fixtures.conversations import add_answer
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from chatbot.service import Service


def test_a_thumb_with_reasons_and_a_comment_is_stored_and_can_be_taken_back(
    page: Page, chat_service: "Service"
) -> None:
    send_and_wait(page, "Hello there")
    click_button(page, "Dislike")
    expect(page.get_by_text("Saved. Thank you.").first).to_be_visible()
    assert [one.value for one in feedback_of_kind(chat_service.store, "thumb")] == [{"up": False}]
    page.get_by_label("Wrong fact").check(force=True)
    page.get_by_placeholder("Anything to add?").fill("It is on your door")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#tb-rated")).to_be_hidden()
    thumb = feedback_of_kind(chat_service.store, "thumb")[-1]
    assert thumb.value == {"up": False, "reasons": ["Wrong fact"]}
    assert feedback_of_kind(chat_service.store, "comment")[0].value == {
        "text": "It is on your door"
    }
    page.reload()
    click_button(page, "Disliked")
    expect(page.get_by_text("Your thumb is taken back.")).to_be_visible()
    assert feedback_of_kind(chat_service.store, "thumb")[-1].value == {"up": None}


@pytest.mark.parametrize("way", ["retried", "edited", "undone"])
def test_a_thumb_stays_with_its_answer_when_another_takes_its_place(
    page: Page, chat_engine: ScriptedEngine, way: str
) -> None:
    chat_engine.answers = ["There is.", "They may.", LONG]
    send_and_wait(page, "Is there parking?")
    send_and_wait(page, "May dogs come in?")
    page.locator("#tb-chat button[title=Like]").first.click()
    expect(page.locator("#tb-rated")).to_contain_text("What was good about it?")
    wait_until(lambda: covers_no_thumb(page))
    click_button(page, "Dislike")
    expect(page.locator("#tb-rated")).to_contain_text("What was wrong with it?")
    chat_engine.pause = 0.05
    ask_again(page, way)
    expect(page.locator(ANSWER).last).to_contain_text("word3")
    only_the_first_is_liked(page)
    page.click("#tb-composer .stop-button")  # so the answer streamed when it was looked at
    expect(page.locator(".tb-stopped")).to_be_visible()
    only_the_first_is_liked(page)
    page.reload()
    only_the_first_is_liked(page)


def covers_no_thumb(page: Page) -> bool:
    """Tell whether the card stands to the right of all thumbs, so that each can be clicked."""
    card = page.locator("#tb-rated").bounding_box()
    thumb = page.locator("#tb-chat button[title=Dislike]").last.bounding_box()
    return card is not None and thumb is not None and card["x"] > thumb["x"] + thumb["width"]


def ask_again(page: Page, way: str) -> None:
    """Have the last answer replaced, in one of three ways."""
    if way == "retried":
        click_button(page, "Retry")
    elif way == "edited":
        edit_last_question(page, "May cats come in?")
    else:
        click_button(page, "Undo")
        expect(page.locator("#tb-composer textarea")).to_have_value("May dogs come in?")
        page.press("#tb-composer textarea", "Enter")


def only_the_first_is_liked(page: Page) -> None:
    thumbs_up = page.locator("#tb-chat button:is([title=Like], [title=Liked])")
    expect(thumbs_up.first).to_have_attribute("title", "Liked")
    expect(page.locator("#tb-chat button:is([title=Liked], [title=Disliked])")).to_have_count(1)


def test_a_thumb_stays_in_its_conversation(page: Page, chat_engine: ScriptedEngine) -> None:
    send_and_wait(page, "About gardens")
    click_button(page, "Like")
    expect(page.locator("#tb-rated")).to_contain_text("What was good about it?")
    chat_engine.answers, chat_engine.pause = [LONG], 0.05
    page.click("#tb-new")
    expect(page.locator("#tb-chat .user-row")).to_have_count(0)
    expect(page.locator("#tb-rated")).to_be_hidden()
    send_message(page, "About houses")
    expect(page.locator(ANSWER)).to_contain_text("word3")
    expect(page.locator("#tb-chat button[title=Liked]")).to_have_count(0)
    page.click("#tb-composer .stop-button")
    wait_until_idle(page)
    expect(page.locator("#tb-chat button[title=Liked]")).to_have_count(0)
    page.locator("#tb-conversations label", has_text="About gardens").click()
    expect(page.locator("#tb-chat button[title=Liked]")).to_have_count(1)


def test_saved_is_not_said_when_the_store_did_not_take_it(
    page: Page, chat_service: "Service"
) -> None:
    send_and_wait(page, "Hello there")
    with chat_service.store.write() as db:
        db.execute("alter table feedback rename to feedback_away")
    try:
        click_button(page, "Like")
        expect(page.locator(".toast-body.error")).to_be_visible()
        assert "Saved" not in page.inner_text("body")
    finally:
        with chat_service.store.write() as db:
            db.execute("alter table feedback_away rename to feedback")


def test_a_corrected_answer_waits_for_a_reviewer_and_hears_of_the_decision(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers = ["We close at five."]
    send_and_wait(page, "When do you close?")
    click_button(page, "Edit")
    page.locator("#tb-chat textarea").fill("We close at six.")
    page.click("#tb-chat button[title=Submit]")
    expect(page.get_by_text("a reviewer will look at it")).to_be_visible()
    shows_the_correction(page)
    page.reload()
    shows_the_correction(page)
    answer = last_answer_id(chat_service.store)
    assert [one.value for one in feedback_of_kind(chat_service.store, "edit")] == [
        {"text": "We close at six."}
    ]
    decide(chat_service.store, answer, "rita", "approve")
    page.reload()
    expect(page.locator(".tb-note")).to_contain_text("A reviewer approved your correction")
    expect(page.locator(ANSWER)).to_have_text("We close at six.")


@pytest.mark.parametrize("finish", ["stop", "cancelled", "error"])
def test_an_answer_that_was_not_changed_is_no_correction(
    chat_service: "Service", finish: Any
) -> None:
    identities, running = (
        BrowserIdentities(chat_service.home.root),
        RunningAnswers(chat_service.group_commit),
    )
    rating = RatingActions(chat_service, identities, ChatViews(chat_service.store, running))
    token, person = identities.identify(None)
    speaker = Speaker(chat_service.speaking, "tiny", finish=finish)
    answer = add_answer(chat_service.store, "Open?", "From <nine>", person=person, speaker=speaker)
    for text in ("From <nine>", escape_markdown("From <nine>"), " "):
        assert "toast" not in rating.correct(token, None, answer, text)
    assert chat_service.store.feedback_on(answer) == []
    assert "toast" in rating.correct(token, None, answer, "From ten")


def shows_the_correction(page: Page) -> None:
    expect(page.locator(".tb-note")).to_have_text("✎ Your version is with a reviewer")
    expect(page.locator(ANSWER)).to_have_text("We close at six.")
    click_button(page, "Edit")
    expect(page.locator("#tb-chat textarea")).to_have_value("We close at six.")
    page.click("#tb-chat button[title=Cancel]")
