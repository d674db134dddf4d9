"""Uses the chat page in a real browser: what people see, and what of it is stored."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from chatbot.auth import api_keys
from chatbot.auth.access import Access
from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.pages.chat.actions import ChatActions
from chatbot.pages.chat.paint import PAINT_JS
from chatbot.pages.chat.rating import RatingActions
from chatbot.pages.chat.running import RunningAnswers
from chatbot.pages.chat.transcript import thread_bubbles
from chatbot.pages.chat.view import BrowserPosition, ChatViews
from chatbot.pages.text import escape_markdown, unescape_markdown
from chatbot.question import Question
from feedback.kinds import Feedback
from feedback.messages import Speaker
from feedback.review.decisions import decide
from feedback.store import Store
from tests.fakes.scripted_engine import (
    ANSWER,
    ScriptedEngine,
    new_adapter,
    open_chat,
    open_service,
    send_and_wait,
    send_message,
    serve_pages,
    wait_until_idle,
)
from tests.fixtures.conversations import add_answer
from tests.fixtures.cut_proxy import cut_proxy
from tests.fixtures.turns import begin_turn
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from chatbot.service import Service

EXAMPLES = ["When do you open?", "Do you ship abroad?"]
LONG = " ".join(f"word{number}" for number in range(200))


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, engine: ScriptedEngine) -> "Service":
    root = tmp_path_factory.mktemp("chat")
    return open_service(root, engine, title="Willow & Finch", examples=EXAMPLES)


@pytest.fixture(scope="module")
def url(service: "Service") -> Iterator[str]:
    with serve_pages(service) as address:
        yield address


@pytest.fixture
def page(chromium: Browser, url: str, engine: ScriptedEngine) -> Iterator[Page]:
    engine.answers, engine.pause, engine.busy = [], 0.01, False
    with open_chat(chromium, url) as page:
        yield page


def last_answer_id(store: Store) -> str:
    row = store.row("select id from message where role = 'assistant' order by rowid desc limit 1")
    assert row is not None
    return str(row["id"])


def feedback_of_kind(store: Store, kind: str) -> list[Feedback]:
    return [given for given in store.feedback_on(last_answer_id(store)) if given.kind == kind]


def click_button(page: Page, title: str) -> None:
    page.locator(f"#tb-chat button[title={title}]").last.click()


def test_an_answer_streams_and_is_stored_with_its_speaker(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    engine.answers, engine.pause = ["We open at nine **every** day."], 0.25
    send_message(page, "When do you open?")
    expect(page.locator(ANSWER)).to_contain_text("We open")
    assert "day" not in page.locator(ANSWER).inner_text()
    wait_until_idle(page)
    expect(page.locator(ANSWER)).to_have_text("We open at nine every day.")
    answer = service.store.message(last_answer_id(service.store))
    assert answer.content == "We open at nine **every** day."
    speaker = service.store.speaker(answer.id)
    assert speaker is not None and speaker.adapter == service.speaking
    expect(page.locator("#tb-status")).to_contain_text(service.speaking)


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


def test_stop_keeps_what_was_shown(page: Page, service: "Service", engine: ScriptedEngine) -> None:
    engine.answers, engine.pause = [LONG], 0.05
    send_message(page, "Talk for long")
    expect(page.locator(ANSWER)).to_contain_text("word3")
    page.click("#tb-composer .stop-button")
    wait_until_idle(page)
    expect(page.locator(".tb-stopped")).to_be_visible()
    answer = service.store.message(last_answer_id(service.store))
    assert "word3" in answer.content and "word199" not in answer.content
    assert page.locator(ANSWER).inner_text() == answer.content.strip()


SLOW = " ".join(f"word{number}" for number in range(60))


def pick(page: Page, title: str) -> None:
    page.locator("#tb-conversations label", has_text=title).click()


def stays(page: Page, selector: str, count: int) -> None:
    """Check that there are so many for a while, in which a late view would be painted."""
    for _ in range(6):
        expect(page.locator(selector)).to_have_count(count)
        page.wait_for_timeout(100)


def test_an_answer_whose_conversation_is_left_goes_on_and_paints_no_other(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    send_and_wait(page, "About ponds")
    page.click("#tb-new")
    expect(page.locator("#tb-chat .user-row")).to_have_count(0)
    engine.answers, engine.pause = [SLOW, SLOW], 0.05
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
    ends = service.store.rows("select finish from speaker order by rowid desc limit 2")
    assert sorted(row["finish"] for row in ends) == ["cancelled", "stop"]


def test_a_tab_that_has_moved_on_is_sent_nothing_more_of_an_answer_which_ends_all_the_same(
    service: "Service", engine: ScriptedEngine
) -> None:
    engine.answers, engine.pause, engine.busy = [SLOW], 0.01, False
    identities = BrowserIdentities(service.home.root)
    actions = ChatActions(service, identities, RunningAnswers(service.group_commit))
    token, before = identities.issue(), service.store.counts()["messages"]
    views = actions.send(token, None, "About gardens", "tab")
    assert [next(views).get("busy"), "text" in next(views)] == [True, True]
    (empty,) = actions.start_conversation(token, "tab")
    assert list(views) == [] == empty["bubbles"]
    wait_until(lambda: service.store.counts()["messages"] == before + 2)
    assert service.store.message(last_answer_id(service.store)).content == SLOW


def test_a_view_of_where_the_page_was_is_not_painted(page: Page) -> None:
    painted = page.evaluate(
        """(js) => {
            const paint = eval(js), { number } = talkback, typing = [{ text: "", typing: true }];
            const view = (at) => JSON.stringify(
                { number: at, serial: -at, after: null, bubbles: typing, changes: { 5: "late" } });
            return [
                paint(view(number - 1), ""), paint(view(number), ""),
                paint("", `${number - 1} late`), paint("", `${number} in time`),
            ].map((changes) => changes.some((change) => change !== undefined));
        }""",
        PAINT_JS,
    )
    assert painted == [False, True, False, True]


def test_an_answer_is_rejoined_after_a_reload_and_from_a_second_tab(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    engine.answers, engine.pause = [SLOW], 0.15
    send_message(page, "About gardens")
    expect(page.locator(ANSWER)).to_contain_text("word3")
    page.reload()
    second = page.context.new_page()
    second.goto(page.url)
    for tab in (page, second):
        expect(tab.locator("#tb-chat .user-row")).to_have_text("About gardens")
        expect(tab.locator("#tb-composer .stop-button")).to_be_visible()
        expect(tab.locator(ANSWER)).to_contain_text("word")
    assert service.store.counts()["messages"] % 2, "it was rejoined when it had ended"
    for tab in (page, second):
        expect(tab.locator(ANSWER)).to_have_text(SLOW)
        wait_until_idle(tab)
    speaker = service.store.speaker(last_answer_id(service.store))
    assert speaker is not None and speaker.finish == "stop"


def test_an_answer_that_nobody_waits_for_is_whole_and_there_when_one_returns(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    engine.answers, engine.pause = [SLOW], 0.05
    before = service.store.counts()["messages"]
    send_message(page, "About gardens")
    expect(page.locator(ANSWER)).to_contain_text("word3")
    address = page.url
    page.goto("about:blank")
    wait_until(lambda: service.store.counts()["messages"] == before + 2)
    assert service.store.message(last_answer_id(service.store)).content == SLOW
    page.goto(address)
    expect(page.locator(ANSWER)).to_have_text(SLOW)
    wait_until_idle(page)


@pytest.mark.slow
def test_an_answer_goes_on_after_the_connection_was_lost(
    chromium: Browser, url: str, service: "Service", engine: ScriptedEngine
) -> None:
    with cut_proxy(url) as proxy, open_chat(chromium, proxy.address) as page:
        engine.answers, engine.pause, engine.busy = [SLOW], 0.1, False
        send_message(page, "About gardens")
        expect(page.locator(ANSWER)).to_contain_text("word3")
        proxy.cut()
        expect(page.locator(ANSWER)).to_have_text(SLOW)
        wait_until_idle(page)
        assert service.store.message(last_answer_id(service.store)).content == SLOW


def test_a_draft_outlives_a_reload_and_enter_while_an_answer_streams(
    page: Page, engine: ScriptedEngine
) -> None:
    engine.answers, engine.pause = [SLOW], 0.05
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


@contextmanager
def held_requests(page: Page, pattern: str) -> Iterator[list[Route]]:
    """Hold the first request to a path, which the block lets go by `continue_`."""
    held: list[Route] = []
    page.route(pattern, lambda route: route.continue_() if held else held.append(route))
    yield held
    page.unroute(pattern)


def test_what_is_sent_before_the_page_has_loaded_stays(chromium: Browser, url: str) -> None:
    page = chromium.new_page(locale="en-US")
    with held_requests(page, "**/queue/join*") as held:
        with page.expect_request("**/queue/join*"):
            page.goto(url)
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


@pytest.mark.parametrize("known", [False, True])
def test_what_is_sent_while_the_loaded_page_is_on_its_way_is_asked_once(
    chromium: Browser, url: str, service: "Service", engine: ScriptedEngine, known: bool
) -> None:
    engine.answers, engine.pause, engine.busy = [], 0.01, False
    context = chromium.new_context(locale="en-US")
    page = context.new_page()
    if known:
        page.goto(url)
        send_and_wait(page, "Before")
    before = service.store.counts()["messages"]
    with held_requests(page, "**/queue/data*") as held:
        with page.expect_request("**/queue/data*"):
            page.goto(url)
        for _ in range(2):
            with page.expect_response("**/queue/join*"):
                send_message(page, "Quick")
        held[0].continue_()
        expect(page.locator("#tb-chat .user-row").last).to_contain_text("Quick")
        wait_until_idle(page)
    stays(page, "#tb-chat .user-row", 1 + known)
    assert service.store.counts()["messages"] == before + 2
    page.reload()
    expect(page.locator("#tb-chat .user-row")).to_have_count(1 + known)
    expect(page.locator("#tb-conversations label")).to_have_count(1)
    context.close()


BUSY = "() => { const end = Date.now() + 1000; while (Date.now() < end); }"


def test_of_views_that_arrive_in_one_burst_none_is_lost(page: Page, engine: ScriptedEngine) -> None:
    engine.answers = ["At nine."]
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


def test_two_enters_at_once_ask_once(page: Page, service: "Service") -> None:
    before = service.store.counts()["messages"]
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
    assert service.store.counts()["messages"] == before + 2


def test_whoever_scrolls_up_stays_there_while_an_answer_streams(
    page: Page, engine: ScriptedEngine
) -> None:
    engine.answers, engine.pause = ["line\n\n" * 60, "line\n\n" * 200], 0.001
    send_and_wait(page, "Talk")
    at_end = "(log) => log.scrollHeight - log.scrollTop - log.clientHeight < 40"
    log = page.locator("#tb-chat [role=log]")
    wait_until(lambda: log.evaluate(at_end))
    engine.pause = 0.05
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
def test_what_people_type_is_shown_as_typed(page: Page, service: "Service", typed: str) -> None:
    send_and_wait(page, typed)
    shown = page.locator("#tb-chat .user-row .prose")
    assert shown.evaluate("(shown) => shown.textContent") == typed.strip()
    assert shown.evaluate("(shown) => shown.children.length") == 0
    page.locator("#tb-chat .user-row").hover()
    page.locator("#tb-chat button[title=Edit]").first.click()
    expect(page.locator("#tb-chat textarea")).to_have_value(escape_markdown(typed.strip()))


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
    page: Page, engine: ScriptedEngine, url: str, answer: str
) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    engine.answers = [answer]
    send_and_wait(page, "Show me")
    page.wait_for_timeout(200)
    assert page.locator("#tb-chat .prose img").count() == 0
    assert [address for address in requested if not address.startswith(url)] == []


def test_what_is_copied_is_what_was_said(page: Page, engine: ScriptedEngine) -> None:
    answer = "Use <b> and ![x](y):\n\n```\n<p>!</p>\n```"
    engine.answers = [answer]
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


def test_text_runs_in_its_own_direction(page: Page, engine: ScriptedEngine) -> None:
    engine.answers = ["نحن نفتح في التاسعة.", "At nine."]
    send_and_wait(page, "متى تفتحون؟")
    send_and_wait(page, "When do you open?")
    direction = "(text) => getComputedStyle(text).direction"
    bubbles = page.locator("#tb-chat [data-testid=user], #tb-chat [data-testid=bot]")
    assert [bubble.evaluate(direction) for bubble in bubbles.all()] == ["rtl", "rtl", "ltr", "ltr"]
    composer = page.locator("#tb-composer textarea")
    composer.fill("متى")
    assert composer.evaluate(direction) == "rtl"


def test_the_chat_works_where_the_browser_denies_storage(
    chromium: Browser, url: str, engine: ScriptedEngine
) -> None:
    engine.answers, engine.pause, engine.busy = ["At nine.", "At five."], 0.01, False
    page = chromium.new_context(locale="en-US").new_page()
    page.add_init_script(
        """Object.defineProperty(window, "localStorage", {
            configurable: true,
            get() { throw new DOMException("denied", "SecurityError"); },
        })"""
    )
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(url)
    expect(page.locator("#tb-chat .example")).to_have_count(2)
    send_and_wait(page, "When do you open?")
    send_and_wait(page, "When do you close?")
    expect(page.locator(ANSWER)).to_have_text(["At nine.", "At five."])
    expect(page.locator("#tb-conversations label")).to_have_count(1)
    page.click("#tb-theme")
    assert failures == []
    page.context.close()


def test_a_long_talk_costs_no_more_to_answer_and_can_be_rated(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    send_and_wait(page, "About gardens")
    leaf = last_answer_id(service.store)
    conversation = service.store.message(leaf).conversation_id
    speaker = service.store.speaker(leaf)
    with service.store.write():
        for turn in range(50):
            question = service.store.add_message(conversation, leaf, "user", f"Question {turn}")
            leaf = service.store.add_message(
                conversation, question, "assistant", "long words " * 100, speaker
            )
    page.click("#tb-new")
    expect(page.locator(ANSWER)).to_have_count(0)
    pick(page, "About gardens")
    expect(page.locator(ANSWER)).to_have_count(51)
    with measured_traffic(page) as traffic:
        engine.answers = ["At nine."]
        send_and_wait(page, "When do you open?")
    assert 0 < sum(traffic) < 10_000, traffic
    with measured_traffic(page) as traffic:
        click_button(page, "Like")
        expect(page.get_by_text("Saved. Thank you.").first).to_be_visible()
    assert 0 < sum(traffic) < 10_000, traffic
    assert [one.value for one in feedback_of_kind(service.store, "thumb")] == [{"up": True}]


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


def test_a_thread_is_read_in_a_few_queries_however_long_it_is(tmp_path: Path) -> None:
    counts = []
    for turns in (2, 20):
        store = Store(tmp_path / f"{turns}.db")
        leaf, conversation = None, store.start_conversation("ann", "Hello")
        for _ in range(turns):
            leaf = store.add_message(conversation, leaf, "user", "Hello")
            leaf = store.add_message(conversation, leaf, "assistant", "Hi", Speaker("a", "b"))
            store.add_feedback(leaf, "ann", "edit", {"text": "Hello!"})
        statements: list[str] = []
        with store.write() as db:
            db.set_trace_callback(statements.append)
        assert len(thread_bubbles(store, leaf, "ann")) == 3 * turns
        counts.append(len(statements))
        store.close()
    assert counts[0] == counts[1] <= 5, statements


def test_a_retry_asks_which_answer_is_better_and_goes_on_from_that_one(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    engine.answers = ["At nine.", "At ten."]
    send_and_wait(page, "When do you open?")
    first = last_answer_id(service.store)
    click_button(page, "Retry")
    expect(page.locator("#tb-pair")).to_contain_text("Which answer is better?")
    second = last_answer_id(service.store)
    expect(page.locator(ANSWER)).to_have_text("At ten.")
    page.get_by_role("button", name="The first").click()
    expect(page.get_by_text("Saved. Thank you.")).to_be_visible()
    expect(page.locator(ANSWER)).to_have_text("At nine.")
    expect(page.locator("#tb-pair")).to_be_hidden()
    choices = [one for one in service.store.feedback_on(first) if one.kind == "choice"]
    assert [one.value for one in choices] == [{"over": second}]


def test_now_and_then_two_answers_are_offered(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    usual = service.chat_settings
    service.chat_settings = usual.model_copy(update={"choice_every": 1})
    try:
        engine.answers = ["At nine.", "At ten."]
        send_message(page, "When do you open?")
        page.get_by_role("button", name="About the same").click()
        expect(page.locator("#tb-pair")).to_be_hidden()
    finally:
        service.chat_settings = usual
    rows = service.store.rows("select value from feedback where value like '%tie%'")
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
    page: Page, engine: ScriptedEngine, way: str, before: int
) -> None:
    engine.answers = ["Hello."] * before + ["They may.", "They may not."]
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


def edit_last_question(page: Page, text: str) -> None:
    """Send the last question with another text."""
    page.locator("#tb-chat .user-row").last.hover()
    page.locator("#tb-chat button[title=Edit]").nth(-2).click()
    page.locator("#tb-chat textarea").fill(text)
    page.click("#tb-chat button[title=Submit]")


def test_editing_ones_own_message_makes_a_branch(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    engine.answers = ["At nine.", "It is free."]
    send_and_wait(page, "When do you opn?")
    page.locator("#tb-chat .user-row").hover()
    page.locator("#tb-chat button[title=Edit]").first.click()
    page.locator("#tb-chat textarea").fill("How much is delivery?")
    page.click("#tb-chat button[title=Submit]")
    expect(page.locator(ANSWER)).to_have_text("It is free.")
    expect(page.locator("#tb-chat .user-row")).to_have_text("How much is delivery?")
    answer = service.store.message(last_answer_id(service.store))
    texts = [message.content for message in service.store.messages(answer.conversation_id)]
    assert texts == ["When do you opn?", "At nine.", "How much is delivery?", "It is free."]
    assert len(service.store.thread(answer.id)) == 2


def test_a_corrected_answer_waits_for_a_reviewer_and_hears_of_the_decision(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    engine.answers = ["We close at five."]
    send_and_wait(page, "When do you close?")
    click_button(page, "Edit")
    page.locator("#tb-chat textarea").fill("We close at six.")
    page.click("#tb-chat button[title=Submit]")
    expect(page.get_by_text("a reviewer will look at it")).to_be_visible()
    shows_the_correction(page)
    page.reload()
    shows_the_correction(page)
    answer = last_answer_id(service.store)
    assert [one.value for one in feedback_of_kind(service.store, "edit")] == [
        {"text": "We close at six."}
    ]
    decide(service.store, answer, "rita", "approve")
    page.reload()
    expect(page.locator(".tb-note")).to_contain_text("A reviewer approved your correction")
    expect(page.locator(ANSWER)).to_have_text("We close at six.")


@pytest.mark.parametrize("finish", ["stop", "cancelled", "error"])
def test_an_answer_that_was_not_changed_is_no_correction(service: "Service", finish: Any) -> None:
    identities, running = BrowserIdentities(service.home.root), RunningAnswers(service.group_commit)
    rating = RatingActions(service, identities, ChatViews(service.store, running))
    token, person = identities.identify(None)
    speaker = Speaker(service.speaking, "tiny", finish=finish)
    answer = add_answer(service.store, "Open?", "From <nine>", person=person, speaker=speaker)
    for text in ("From <nine>", escape_markdown("From <nine>"), " "):
        assert "toast" not in rating.correct(token, None, answer, text)
    assert service.store.feedback_on(answer) == []
    assert "toast" in rating.correct(token, None, answer, "From ten")


def shows_the_correction(page: Page) -> None:
    expect(page.locator(".tb-note")).to_have_text("✎ Your version is with a reviewer")
    expect(page.locator(ANSWER)).to_have_text("We close at six.")
    click_button(page, "Edit")
    expect(page.locator("#tb-chat textarea")).to_have_value("We close at six.")
    page.click("#tb-chat button[title=Cancel]")


def test_an_approved_answer_is_marked_as_such(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    engine.answers = ["We have none."]
    send_and_wait(page, "Where is your shop in Leeds?")
    decide(service.store, last_answer_id(service.store), "rita", "correct", "At 4 Mill Lane.")
    send_and_wait(page, "where is your shop in leeds")
    expect(page.locator(ANSWER).last).to_have_text("At 4 Mill Lane.")
    expect(page.locator(".tb-approved")).to_contain_text("Approved answer")


def test_a_thumb_with_reasons_and_a_comment_is_stored_and_can_be_taken_back(
    page: Page, service: "Service"
) -> None:
    send_and_wait(page, "Hello there")
    click_button(page, "Dislike")
    expect(page.get_by_text("Saved. Thank you.").first).to_be_visible()
    assert [one.value for one in feedback_of_kind(service.store, "thumb")] == [{"up": False}]
    page.get_by_label("Wrong fact").check(force=True)
    page.get_by_placeholder("Anything to add?").fill("It is on your door")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#tb-rated")).to_be_hidden()
    thumb = feedback_of_kind(service.store, "thumb")[-1]
    assert thumb.value == {"up": False, "reasons": ["Wrong fact"]}
    assert feedback_of_kind(service.store, "comment")[0].value == {"text": "It is on your door"}
    page.reload()
    click_button(page, "Disliked")
    expect(page.get_by_text("Your thumb is taken back.")).to_be_visible()
    assert feedback_of_kind(service.store, "thumb")[-1].value == {"up": None}


@pytest.mark.parametrize("way", ["retried", "edited", "undone"])
def test_a_thumb_stays_with_its_answer_when_another_takes_its_place(
    page: Page, engine: ScriptedEngine, way: str
) -> None:
    engine.answers = ["There is.", "They may.", LONG]
    send_and_wait(page, "Is there parking?")
    send_and_wait(page, "May dogs come in?")
    page.locator("#tb-chat button[title=Like]").first.click()
    expect(page.locator("#tb-rated")).to_contain_text("What was good about it?")
    click_button(page, "Dislike")
    expect(page.locator("#tb-rated")).to_contain_text("What was wrong with it?")
    engine.pause = 0.05
    ask_again(page, way)
    expect(page.locator(ANSWER).last).to_contain_text("word3")
    only_the_first_is_liked(page)
    page.click("#tb-composer .stop-button")  # so the answer streamed when it was looked at
    expect(page.locator(".tb-stopped")).to_be_visible()
    only_the_first_is_liked(page)
    page.reload()
    only_the_first_is_liked(page)


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


def test_a_thumb_stays_in_its_conversation(page: Page, engine: ScriptedEngine) -> None:
    send_and_wait(page, "About gardens")
    click_button(page, "Like")
    expect(page.locator("#tb-rated")).to_contain_text("What was good about it?")
    engine.answers, engine.pause = [LONG], 0.05
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


def test_saved_is_not_said_when_the_store_did_not_take_it(page: Page, service: "Service") -> None:
    send_and_wait(page, "Hello there")
    with service.store.write() as db:
        db.execute("alter table feedback rename to feedback_away")
    try:
        click_button(page, "Like")
        expect(page.locator(".toast-body.error")).to_be_visible()
        assert "Saved" not in page.inner_text("body")
    finally:
        with service.store.write() as db:
            db.execute("alter table feedback_away rename to feedback")


def test_conversations_are_listed_survive_a_reload_and_belong_to_one_person(
    page: Page, chromium: Browser, url: str
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
    with open_chat(chromium, url) as other:
        expect(other.locator("#tb-conversations label")).to_have_count(0)
        expect(other.locator("#tb-chat .example")).to_have_count(2)


def test_an_example_question_is_asked_with_one_click(page: Page, engine: ScriptedEngine) -> None:
    engine.answers = ["Yes, to all of Europe."]
    page.locator("#tb-chat .example", has_text="Do you ship abroad?").click()
    expect(page.locator(ANSWER)).to_have_text("Yes, to all of Europe.")
    expect(page.locator("#tb-chat .user-row")).to_have_text("Do you ship abroad?")


def test_a_busy_bot_says_so_and_gives_the_words_back(
    page: Page, service: "Service", engine: ScriptedEngine
) -> None:
    engine.busy = True
    before = service.store.counts()["messages"]
    send_message(page, "Are you there?")
    expect(page.locator("#tb-notice")).to_contain_text("Try again")
    expect(page.locator("#tb-composer textarea")).to_have_value("Are you there?")
    assert service.store.counts()["messages"] == before
    engine.busy = False
    page.press("#tb-composer textarea", "Enter")
    expect(page.locator(ANSWER)).to_have_count(1)
    expect(page.locator("#tb-notice")).to_be_hidden()


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
    page: Page, engine: ScriptedEngine, url: str, attack: str
) -> None:
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    engine.answers = [f"You said {attack}"]
    send_and_wait(page, attack)
    page.wait_for_timeout(300)
    assert "pwned" not in page.title()
    assert page.locator("#tb-chat .prose :is(img, script, iframe)").count() == 0
    assert page.locator("#tb-chat a[href^='javascript:']").count() == 0
    assert [address for address in requested if not address.startswith(url)] == []


def test_nothing_is_loaded_from_elsewhere(page: Page, url: str) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.reload()
    page.wait_for_selector("#tb-chat .example")
    assert requested and all(address.startswith((url, "data:", "blob:")) for address in requested)


def test_a_new_adapter_takes_over_in_sight(page: Page, service: "Service") -> None:
    send_and_wait(page, "Hello old one")
    adapter = new_adapter(service, seed=7)
    service.registry.promote(adapter, "person", "otto", "reads better")
    expect(page.locator("#tb-status")).to_contain_text(adapter)
    send_and_wait(page, "Hello new one")
    expect(page.locator(".tb-new")).to_have_text("A newer version speaks from here on")


def test_a_refused_adapter_is_said_to_be_refused(page: Page, service: "Service") -> None:
    before = service.speaking
    broken = new_adapter(service, seed=8)
    (service.home.adapters / broken / "adapter_model.safetensors").write_bytes(b"broken")
    service.registry.promote(broken, "person", "otto", "by mistake")
    try:
        expect(page.locator("#tb-status .tb-warn")).to_contain_text("refused")
        assert str(service.home.root) not in page.inner_text("#tb-status")
        assert service.speaking == before
        expect(page.locator("#tb-status .tb-pill")).to_contain_text(before)
    finally:
        service.registry.promote(before, "person", "otto", "back")


def test_a_phone_shows_the_whole_page_without_scrolling_sideways(
    chromium: Browser, url: str
) -> None:
    size = {"width": 390, "height": 844}
    with open_chat(chromium, url, viewport=size, color_scheme="dark", has_touch=True) as page:
        send_and_wait(page, "a" * 120)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        composer = page.locator("#tb-composer").bounding_box()
        assert composer is not None and composer["y"] + composer["height"] <= 844
        assert page.locator("body.dark").count() == 1


def test_the_theme_that_was_chosen_is_kept(page: Page) -> None:
    page.click("#tb-theme")
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    page.reload()
    expect(page.locator("body")).to_have_class(re.compile("dark"))


def test_updates_are_coalesced_and_the_end_is_always_shown(
    service: "Service", engine: ScriptedEngine
) -> None:
    words = " ".join(["word"] * 100)
    engine.answers, engine.pause = [words], 0.004
    turn = begin_turn(service, Question("Talk", "ann", adapter="base"))
    shown_texts = list(RunningAnswers(service.group_commit).start(turn).texts())
    assert 3 <= len(shown_texts) <= 40
    assert len(shown_texts[0].split()) < 10, "the first words wait for nothing"
    assert shown_texts[-1] == words


def test_a_forged_token_or_place_opens_nothing_of_another_person(service: "Service") -> None:
    identities = BrowserIdentities(service.home.root)
    store = service.store
    token, ann = identities.identify(None)
    conversation = store.start_conversation(ann, "Secret")
    question = store.add_message(conversation, None, "user", "Secret")
    stored = BrowserPosition(conversation, question).to_storage()
    actions = ChatActions(service, identities, RunningAnswers(service.group_commit))
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


@pytest.mark.parametrize("text", ["a <b>c</b>", "![x](y)", "x < y", "`<i>` and <i>", "wow! [1]"])
def test_text_shown_for_editing_comes_back_as_it_was(text: str) -> None:
    assert unescape_markdown(escape_markdown(text)) == text


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


def test_on_a_phone_the_list_of_conversations_folds_once_something_is_picked(
    chromium: Browser, url: str, engine: ScriptedEngine
) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
    engine.answers, engine.pause, engine.busy = ["We do."], 0.01, False
    with open_chat(chromium, url, **phone) as page:
        send_and_wait(page, "Do you ship abroad?")
        for pick in ("#tb-new", "#tb-conversations label"):
            expect(page.locator("#tb-sidebar")).not_to_have_class(re.compile(r"\bopen\b"))
            page.click("#tb-sidebar .toggle-button")
            expect(page.locator("#tb-sidebar")).to_have_class(re.compile(r"\bopen\b"))
            page.click(pick)
        expect(page.locator("#tb-sidebar")).not_to_have_class(re.compile(r"\bopen\b"))
