"""Retries, edits and undoes on the chat page in a real browser: pairs, branches, ways back."""

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from tests.fakes.scripted_engine import (
    ANSWER,
    ScriptedEngine,
    send_and_wait,
    send_message,
)
from tests.fixtures.chat_page import click_button, edit_last_question, last_answer_id

if TYPE_CHECKING:
    from chatbot.service import Service


def test_a_retry_asks_which_answer_is_better_and_goes_on_from_that_one(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers = ["At nine.", "At ten."]
    send_and_wait(page, "When do you open?")
    first = last_answer_id(chat_service.store)
    click_button(page, "Retry")
    expect(page.locator("#tb-pair")).to_contain_text("Which answer is better?")
    second = last_answer_id(chat_service.store)
    expect(page.locator(ANSWER)).to_have_text("At ten.")
    page.get_by_role("button", name="The first").click()
    expect(page.get_by_text("Saved. Thank you.")).to_be_visible()
    expect(page.locator(ANSWER)).to_have_text("At nine.")
    expect(page.locator("#tb-pair")).to_be_hidden()
    choices = [one for one in chat_service.store.feedback_on(first) if one.kind == "choice"]
    assert [one.value for one in choices] == [{"over": second}]


def test_now_and_then_two_answers_are_offered(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    usual = chat_service.chat_settings
    chat_service.chat_settings = usual.model_copy(update={"choice_every": 1})
    try:
        chat_engine.answers = ["At nine.", "At ten."]
        send_message(page, "When do you open?")
        page.get_by_role("button", name="About the same").click()
        expect(page.locator("#tb-pair")).to_be_hidden()
    finally:
        chat_service.chat_settings = usual
    rows = chat_service.store.rows("select value from feedback where value like '%tie%'")
    assert len(rows) == 1


def test_undo_takes_the_last_exchange_back_to_be_written_anew(page: Page) -> None:
    send_and_wait(page, "First thing")
    send_and_wait(page, "Second thing")
    click_button(page, "Undo")
    expect(page.locator("#tb-composer textarea")).to_have_value("Second thing")
    expect(page.locator("#tb-chat .user-row")).to_have_count(1)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("way", ["retried", "edited", "undone"])
def test_what_was_replaced_or_undone_can_be_reached_again(
    page: Page, chat_engine: ScriptedEngine, way: str, before: int
) -> None:
    chat_engine.answers = ["Hello."] * before + ["They may.", "They may not."]
    for _ in range(before):
        send_and_wait(page, "Hello?")
    expect(page.locator("#tb-versions")).to_be_hidden()
    send_and_wait(page, "May dogs come in?")
    composer = page.locator("#tb-composer textarea")
    if way == "undone":
        click_button(page, "Undo")
        expect(composer).to_have_value("May dogs come in?")
    elif way == "retried":
        click_button(page, "Retry")
    else:
        edit_last_question(page, "May cats come in?")
    expect(page.locator("#tb-versions")).to_contain_text("Version 2 of 2")
    expect(page.get_by_role("button", name="Later")).to_be_disabled()
    page.reload()
    page.get_by_role("button", name="Earlier").click()
    expect(page.locator(ANSWER).last).to_have_text("They may.")
    expect(page.locator("#tb-chat .user-row").last).to_contain_text("May dogs come in?")
    expect(composer).to_have_value("")
    if way == "undone":
        expect(page.locator("#tb-versions")).to_be_hidden()
    else:
        page.get_by_role("button", name="Later").click()
        expect(page.locator(ANSWER).last).to_have_text("They may not.")
    expect(page.locator("#tb-chat .user-row")).to_have_count(before + 1)


def test_editing_ones_own_message_makes_a_branch(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers = ["At nine.", "It is free."]
    send_and_wait(page, "When do you opn?")
    page.locator("#tb-chat .user-row").hover()
    page.locator("#tb-chat button[title=Edit]").first.click()
    page.locator("#tb-chat textarea").fill("How much is delivery?")
    page.click("#tb-chat button[title=Submit]")
    expect(page.locator(ANSWER)).to_have_text("It is free.")
    expect(page.locator("#tb-chat .user-row")).to_have_text("How much is delivery?")
    answer = chat_service.store.message(last_answer_id(chat_service.store))
    texts = [message.content for message in chat_service.store.messages(answer.conversation_id)]
    assert texts == ["When do you opn?", "At nine.", "How much is delivery?", "It is free."]
    assert len(chat_service.store.thread(answer.id)) == 2
