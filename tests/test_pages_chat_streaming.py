"""Follows answers on the chat page in a real browser to their ends, wherever people go."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, expect

from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat.actions import ChatActions
from chatbot.pages.chat.paint import PAINT_JS
from chatbot.pages.chat.running import RunningAnswers
from chatbot.question import Question
from tests.fakes.scripted_engine import (
    ANSWER,
    ScriptedEngine,
    open_chat,
    send_and_wait,
    send_message,
    wait_until_idle,
)
from tests.fixtures.chat_page import (
    LONG,
    SLOW,
    feedback_of_kind,
    last_answer_id,
    pick,
    stays,
)
from tests.fixtures.cut_proxy import cut_proxy
from tests.fixtures.turns import begin_turn
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from chatbot.service import Service


BUSY = "() => { const end = Date.now() + 1000; while (Date.now() < end); }"


def test_an_answer_streams_and_is_stored_with_its_speaker(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers, chat_engine.pause = ["We open at nine **every** day."], 0.25
    send_message(page, "When do you open?")
    expect(page.locator(ANSWER)).to_contain_text("We open")
    assert "day" not in page.locator(ANSWER).inner_text()
    wait_until_idle(page)
    expect(page.locator(ANSWER)).to_have_text("We open at nine every day.")
    answer = chat_service.store.message(last_answer_id(chat_service.store))
    assert answer.content == "We open at nine **every** day."
    speaker = chat_service.store.speaker(answer.id)
    assert speaker is not None and speaker.adapter == chat_service.speaking
    expect(page.locator("#tb-status")).to_contain_text(chat_service.speaking)


def test_updates_are_coalesced_and_the_end_is_always_shown(
    chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    words = " ".join(["word"] * 100)
    chat_engine.answers, chat_engine.pause = [words], 0.004
    turn = begin_turn(chat_service, Question("Talk", "ann", adapter="base"))
    shown_texts = [
        text for _, text in RunningAnswers(chat_service.group_commit).start(turn).texts()
    ]
    assert 3 <= len(shown_texts) <= 40
    assert len(shown_texts[0].split()) < 10, "the first words wait for nothing"
    assert shown_texts[-1] == words


TITLE_AND_TEXT = ("title", "content")


def test_a_thought_is_folded_and_the_answer_is_rated_as_any_other(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    """Also after a reload; what the thought holds is text, no tags."""
    thought = "First <b>the</b> hours.\n\n1. Nine?\n2. Or *ten*? " + "Hm, so. " * 20
    chat_engine.answers, chat_engine.pause = [f"{thought}</think>We open at ten."], 0.03
    send_message(page, "When do you open?")
    title, content = (page.locator(f"#tb-chat .thought-group .{part}") for part in TITLE_AND_TEXT)
    expect(title).to_contain_text("Thinking…")
    wait_until_idle(page)
    for _ in range(2):
        expect(title).to_contain_text("Thought for")
        expect(content).to_have_count(0)
        page.reload()
    title.click()
    expect(content).to_contain_text("b>the")
    expect(content.locator("b")).to_have_count(0)
    expect(content.locator("em")).to_have_text("ten")
    answer = chat_service.store.message(last_answer_id(chat_service.store))
    assert (answer.content, answer.thought) == ("We open at ten.", thought.rstrip())
    page.get_by_role("button", name="Like", exact=True).click()
    expect(page.locator("#tb-rated")).to_be_visible()
    (thumb,) = chat_service.store.feedback_on(answer.id)
    assert thumb.value["up"] is True


def test_stop_keeps_what_was_shown(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers, chat_engine.pause = [LONG], 0.05
    send_message(page, "Talk for long")
    expect(page.locator(ANSWER)).to_contain_text("word3")
    page.click("#tb-composer .stop-button")
    wait_until_idle(page)
    expect(page.locator(".tb-stopped")).to_be_visible()
    answer = chat_service.store.message(last_answer_id(chat_service.store))
    assert "word3" in answer.content and "word199" not in answer.content
    assert page.locator(ANSWER).inner_text() == answer.content.strip()


def test_an_answer_whose_conversation_is_left_goes_on_and_paints_no_other(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    send_and_wait(page, "About ponds")
    page.click("#tb-new")
    expect(page.locator("#tb-chat .user-row")).to_have_count(0)
    chat_engine.answers, chat_engine.pause = [SLOW, SLOW], 0.05
    send_message(page, "About gardens")
    expect(page.locator(ANSWER)).to_contain_text("word3")
    page.click("#tb-new")
    expect(page.locator("#tb-chat .user-row")).to_have_count(0)
    stays(page, "#tb-chat .message-row", 0)
    send_message(page, "About houses")  # nothing of it is swallowed
    expect(page.locator(ANSWER)).to_contain_text("word3")
    pick(page, "About ponds")
    expect(page.locator("#tb-chat .user-row")).to_have_text("About ponds")
    stays(page, "#tb-chat .message-row", 2)
    expect(page.locator("#tb-composer .submit-button")).to_be_visible()
    pick(page, "About houses")
    expect(page.locator("#tb-composer .stop-button")).to_be_visible()
    page.click("#tb-composer .stop-button")
    expect(page.locator(".tb-stopped")).to_be_visible()
    pick(page, "About gardens")
    expect(page.locator(ANSWER)).to_have_text(SLOW)
    wait_until_idle(page)
    ends = chat_service.store.rows("select finish from speaker order by rowid desc limit 2")
    assert sorted(row["finish"] for row in ends) == ["cancelled", "stop"]


def test_a_tab_that_has_moved_on_is_sent_nothing_more_of_an_answer_which_ends_all_the_same(
    chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers, chat_engine.pause, chat_engine.busy = [SLOW], 0.01, False
    identities = BrowserIdentities(chat_service.home.root)
    actions = ChatActions(chat_service, identities, RunningAnswers(chat_service.group_commit))
    token = identities.issue()
    views = actions.send(token, None, "About gardens", "tab")
    assert [next(views).get("busy"), "text" in next(views)] == [True, True]
    (empty,) = actions.start_conversation(token, "tab")
    assert list(views) == [] == empty["bubbles"]
    store = chat_service.store
    wait_until(lambda: store.message(last_answer_id(store)).content == SLOW)


def test_a_view_of_where_the_page_was_is_not_painted(page: Page) -> None:
    painted = page.evaluate(
        """async (js) => {
            const paint = eval(js), { number } = talkback, typing = [{ text: "", typing: true }];
            const view = (at) => JSON.stringify(
                { number: at, serial: -at, after: null, bubbles: typing, changes: { 5: "late" } });
            const changes = await Promise.all([
                paint(view(number - 1), ""), paint(view(number), ""),
                paint("", `${number - 1} late`), paint("", `${number} in time`),
            ]);
            return changes.map((some) => some.some((change) => change !== undefined));
        }""",
        PAINT_JS,
    )
    assert painted == [False, True, False, True]


def test_an_answer_is_rejoined_after_a_reload_and_from_a_second_tab(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers, chat_engine.pause = [SLOW], 0.15
    send_message(page, "About gardens")
    expect(page.locator(ANSWER)).to_contain_text("word3")
    page.reload()
    second = page.context.new_page()
    second.goto(page.url)
    for tab in (page, second):
        expect(tab.locator("#tb-chat .user-row")).to_have_text("About gardens")
        expect(tab.locator("#tb-composer .stop-button")).to_be_visible()
        expect(tab.locator(ANSWER)).to_contain_text("word")
    assert chat_service.store.counts()["messages"] % 2, "it was rejoined when it had ended"
    for tab in (page, second):
        expect(tab.locator(ANSWER)).to_have_text(SLOW)
        wait_until_idle(tab)
    speaker = chat_service.store.speaker(last_answer_id(chat_service.store))
    assert speaker is not None and speaker.finish == "stop"


def test_an_answer_that_nobody_waits_for_is_whole_and_there_when_one_returns(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers, chat_engine.pause = [SLOW], 0.05
    before = chat_service.store.counts()["messages"]
    send_message(page, "About gardens")
    expect(page.locator(ANSWER)).to_contain_text("word3")
    address = page.url
    page.goto("about:blank")
    wait_until(lambda: chat_service.store.counts()["messages"] == before + 2)
    assert chat_service.store.message(last_answer_id(chat_service.store)).content == SLOW
    page.goto(address)
    expect(page.locator(ANSWER)).to_have_text(SLOW)
    wait_until_idle(page)


@pytest.mark.slow
def test_an_answer_goes_on_after_the_connection_was_lost(
    chromium: Browser, chat_url: str, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    with cut_proxy(chat_url) as proxy, open_chat(chromium, proxy.address) as page:
        chat_engine.answers, chat_engine.pause, chat_engine.busy = [SLOW], 0.1, False
        send_message(page, "About gardens")
        expect(page.locator(ANSWER)).to_contain_text("word3")
        proxy.cut()
        expect(page.locator(ANSWER)).to_have_text(SLOW)
        wait_until_idle(page)
        assert chat_service.store.message(last_answer_id(chat_service.store)).content == SLOW


def test_of_views_that_arrive_in_one_burst_none_is_lost(
    page: Page, chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers = ["At nine."]
    page.fill("#tb-composer textarea", "When do you open?")
    with page.expect_request("**/queue/join*"):
        page.press("#tb-composer textarea", "Enter")
    page.evaluate(BUSY)
    expect(page.locator(ANSWER)).to_have_text("At nine.")
    expect(page.locator("#tb-conversations label")).to_have_count(1)
    expect(page.locator("#tb-composer textarea")).to_have_value("")
    wait_until_idle(page)


def test_views_of_two_actions_in_one_burst_leave_the_page_of_the_last(page: Page) -> None:
    send_and_wait(page, "About gardens")
    page.evaluate(
        """() => {
            document.querySelector("#tb-chat button[title=Like]").click();
            setTimeout(() => {
                document.querySelector("#tb-new").click();
                const busy = () => { const end = Date.now() + 1000; while (Date.now() < end); };
                setTimeout(busy, 20);
            }, 20);
        }"""
    )
    expect(page.locator("#tb-chat .user-row")).to_have_count(0)
    stays(page, "#tb-chat .user-row", 0)
    expect(page.locator("#tb-rated")).to_be_hidden()


def test_whoever_scrolls_up_stays_there_while_an_answer_streams(
    page: Page, chat_engine: ScriptedEngine
) -> None:
    chat_engine.answers, chat_engine.pause = ["line\n\n" * 60, "line\n\n" * 200], 0.001
    send_and_wait(page, "Talk")
    at_end = "(log) => log.scrollHeight - log.scrollTop - log.clientHeight < 40"
    log = page.locator("#tb-chat [role=log]")
    wait_until(lambda: log.evaluate(at_end))
    chat_engine.pause = 0.05
    send_message(page, "Talk on")
    expect(page.locator(ANSWER)).to_have_count(2)
    wait_until(lambda: log.evaluate(at_end))
    log.hover()
    page.mouse.wheel(0, -60)  # less than Gradio's own 100 pixels
    page.wait_for_timeout(300)
    height = log.evaluate("(log) => log.scrollTop")
    page.wait_for_timeout(800)
    assert abs(log.evaluate("(log) => log.scrollTop") - height) < 5
    expect(page.locator("#tb-composer .stop-button")).to_be_visible()


def test_a_long_talk_costs_no_more_to_answer_and_can_be_rated(
    page: Page, chat_service: "Service", chat_engine: ScriptedEngine
) -> None:
    send_and_wait(page, "About gardens")
    leaf = last_answer_id(chat_service.store)
    conversation = chat_service.store.message(leaf).conversation_id
    speaker = chat_service.store.speaker(leaf)
    with chat_service.store.write():
        for turn in range(50):
            question = chat_service.store.add_message(
                conversation, leaf, "user", f"Question {turn}"
            )
            leaf = chat_service.store.add_message(
                conversation, question, "assistant", "long words " * 100, speaker
            )
    page.click("#tb-new")
    expect(page.locator(ANSWER)).to_have_count(0)
    pick(page, "About gardens")
    expect(page.locator(ANSWER)).to_have_count(51)
    with measured_traffic(page) as traffic:
        chat_engine.answers = ["At nine."]
        send_and_wait(page, "When do you open?")
    assert 0 < sum(traffic) < 10_000, traffic
    # Not `last`: while the answer is painted once more, that is another's.
    like = page.locator("#tb-chat button[title=Like]").nth(51)
    with measured_traffic(page) as traffic:
        like.click()
        expect(page.get_by_text("Saved. Thank you.").first).to_be_visible()
    assert 0 < sum(traffic) < 10_000, traffic
    assert [one.value for one in feedback_of_kind(chat_service.store, "thumb")] == [{"up": True}]


@contextmanager
def measured_traffic(page: Page) -> Iterator[list[int]]:
    """Yield the list of bytes that go and come over the network meanwhile."""
    network = page.context.new_cdp_session(page)
    sizes: list[int] = []
    network.on("Network.dataReceived", lambda data: sizes.append(data["dataLength"]))
    network.on(
        "Network.requestWillBeSent",
        lambda sent: sizes.append(len(sent["request"].get("postData", ""))),
    )
    network.send("Network.enable")
    yield sizes
    network.detach()
