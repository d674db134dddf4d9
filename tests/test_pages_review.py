"""Uses the review page in a real browser: the queue, decisions, and who may see it at all."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from chatbot.auth import api_keys
from chatbot.auth.access import Access
from chatbot.pages.text import mark_differences
from feedback.exemplars import find_approved
from feedback.ids import new_id
from feedback.messages import Speaker
from feedback.review import queue
from feedback.review.decisions import decide, decision_on
from tests.fakes.scripted_engine import ScriptedEngine, open_service, serve_pages

if TYPE_CHECKING:
    from chatbot.service import Service

TOKEN = "open sesame"
"""The review token, an operator's key without a name: who reviews with it signs."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> "Service":
    root = tmp_path_factory.mktemp("review")
    service = open_service(root, ScriptedEngine())
    service.access = Access(service.store, service.home.root, token=TOKEN)
    return service


@pytest.fixture(scope="module")
def url(service: "Service") -> Iterator[str]:
    with serve_pages(service) as address:
        yield f"{address}/review"


@pytest.fixture
def page(chromium: Browser, url: str, service: "Service") -> Iterator[Page]:
    """Open the page for a reviewer who has logged in, with an empty queue."""
    empty_queue(service)
    context = chromium.new_context(locale="en-US")
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(url)
    log_in(page, TOKEN)
    expect(page.get_by_text("All caught up")).to_be_visible()
    yield page
    context.close()


def empty_queue(service: "Service") -> None:
    for item in queue.list_pending(service.store):
        decide(service.store, item.answer.id, "cleaner", "reject")


def log_in(page: Page, key: str) -> None:
    page.get_by_placeholder("Key", exact=True).fill(key)
    page.get_by_role("button", name="Open").click()


def add_answer(
    service: "Service", question: str, answer: str, speaker: Speaker | None = None
) -> str:
    """Store an answer to a question, in a conversation of its own; return its id."""
    conversation = service.store.start_conversation("ann", question)
    question_id = service.store.add_message(conversation, None, "user", question)
    speaker = speaker or Speaker(adapter=service.speaking, base="tiny")
    return service.store.add_message(conversation, question_id, "assistant", answer, speaker)


def add_edited_answer(service: "Service", question: str, answer: str, better: str) -> str:
    message = add_answer(service, question, answer)
    service.store.add_feedback(message, "ann", "edit", {"text": better})
    return message


def test_an_edit_stands_beside_the_answer_and_works_at_once_when_approved(
    page: Page, service: "Service"
) -> None:
    message = add_edited_answer(
        service, "When do you open on Mondays?", "We open at nine.", "We open at ten."
    )
    service.store.add_feedback(message, "ann", "thumb", {"up": False, "reasons": ["Wrong fact"]})
    service.store.add_feedback(message, "ann", "comment", {"text": "It is on your door"})
    page.reload()
    expect(page.locator("#tb-case")).to_contain_text("Wrong fact")
    expect(page.locator("#tb-case")).to_contain_text("It is on your door")
    expect(page.locator("#tb-case del")).to_have_text("nine")
    expect(page.locator("#tb-case ins")).to_have_text("ten")
    page.get_by_placeholder("Your name").fill("rita")
    page.click("#tb-approve")
    expect(page.get_by_text("Saved. It is at work")).to_be_visible()
    expect(page.get_by_text("All caught up")).to_be_visible()
    decision = decision_on(service.store, message)
    assert decision is not None
    assert (decision.action, decision.answer) == ("approve", "We open at ten.")
    assert decision.reviewer == "rita"
    found = find_approved(service.store, "When do you open on Mondays?")
    assert found is not None and found.answer == "We open at ten."


def test_approving_a_text_that_the_reviewer_changed_keeps_the_changed_one(
    page: Page, service: "Service"
) -> None:
    message = add_edited_answer(
        service, "How much is express delivery?", "It is nine euros.", "It is 8 euro."
    )
    page.reload()
    page.fill("#tb-answer textarea", "It is 8 euros.")
    page.click("#tb-approve")
    expect(page.get_by_text("All caught up")).to_be_visible()
    decision = decision_on(service.store, message)
    assert decision is not None
    assert (decision.action, decision.answer) == ("correct", "It is 8 euros.")


def test_decisions_lead_through_the_queue(page: Page, service: "Service") -> None:
    first = add_edited_answer(service, "Do you repair lawn mowers?", "We do not.", "We do.")
    second = add_answer(service, "Do you sell kayaks?", "We sell boats.")
    service.store.add_feedback(second, "ann", "thumb", {"up": False})
    page.reload()
    expect(page.locator("#tb-items label")).to_have_count(2)
    expect(page.locator("#tb-case")).to_contain_text("Do you repair lawn mowers?")
    page.click("#tb-next")
    expect(page.locator("#tb-case")).to_contain_text("Do you sell kayaks?")
    page.fill("#tb-answer textarea", "We have no kayaks.")
    page.click("#tb-correct")
    expect(page.locator("#tb-case")).to_contain_text("Do you repair lawn mowers?")
    page.click("#tb-reject")
    expect(page.get_by_text("All caught up")).to_be_visible()
    decisions = [decision_on(service.store, message) for message in (first, second)]
    assert [decision and decision.action for decision in decisions] == ["reject", "correct"]


def test_who_decides_second_learns_who_decided_what_and_when_and_keeps_the_own_words(
    page: Page, service: "Service"
) -> None:
    message = add_edited_answer(service, "Do you rent tents?", "No.", "Yes.")
    page.reload()
    page.fill("#tb-answer textarea", "Yes, for a week.")
    decide(service.store, message, "rita", "correct", "Yes, daily.")
    page.click("#tb-correct")
    expect(page.get_by_role("alert")).to_contain_text('rita corrected it to "Yes, daily." on 20')
    expect(page.locator("#tb-case .tb-tags")).to_contain_text("rita corrected it just now")
    expect(page.locator("#tb-answer textarea")).to_have_value("Yes, for a week.")
    decision = decision_on(service.store, message)
    assert decision is not None and decision.reviewer == "rita"
    page.click("#tb-correct")
    expect(page.get_by_text("All caught up")).to_be_visible()
    decision = decision_on(service.store, message)
    assert decision is not None and decision.answer == "Yes, for a week."


def test_all_that_people_propose_is_shown_with_names_and_one_is_chosen(
    page: Page, service: "Service"
) -> None:
    message = add_answer(service, "When does the ferry leave?", "At noon.")
    visitor = new_id("person")
    for person, text in (("ann", "At one."), ("bob", "At two."), (visitor, "At three.")):
        service.store.add_feedback(message, person, "edit", {"text": text})
    page.reload()
    case = page.locator("#tb-case")
    expect(case).to_contain_text("They disagree")
    expect(page.locator(".tb-proposal")).to_have_count(3)
    names = ("ann", "bob", f"visitor {visitor[-4:]}")
    for name, text in zip(names, ("At one.", "At two.", "At three."), strict=True):
        signed = page.locator(".tb-proposal", has_text=text).locator(".tb-when")
        expect(signed).to_have_text(f"{name}, just now")
    page.get_by_label("bob, just now: At two.").check()
    expect(page.locator("#tb-answer textarea")).to_have_value("At two.")
    page.click("#tb-approve")
    expect(page.get_by_text("All caught up")).to_be_visible()
    decision = decision_on(service.store, message)
    assert decision is not None and (decision.action, decision.answer) == ("approve", "At two.")


def test_of_a_disliked_answer_the_first_thing_to_do_is_to_correct_it(
    page: Page, service: "Service"
) -> None:
    message = add_answer(service, "Do you sell sails?", "We sell snails.")
    service.store.add_feedback(message, "ann", "thumb", {"up": False})
    page.reload()
    expect(page.locator("#tb-correct")).to_contain_class("primary")
    expect(page.locator("#tb-approve")).not_to_contain_class("primary")
    page.click("#tb-correct")
    expect(page.get_by_role("alert")).to_contain_text("the answer as it was given")
    assert decision_on(service.store, message) is None


def test_a_cut_answer_is_seen_to_be_cut_and_cannot_be_approved_as_it_is(
    page: Page, service: "Service"
) -> None:
    cut = Speaker(adapter=service.speaking, base="tiny", finish="length")
    message = add_answer(service, "Who built the boat?", "It was built by", cut)
    service.store.add_feedback(message, "ann", "thumb", {"up": False})
    page.reload()
    expect(page.locator("#tb-case .tb-cut")).to_contain_text("cut here")
    expect(page.locator("#tb-approve")).to_be_disabled()
    page.fill("#tb-answer textarea", "It was built by Ann.")
    page.click("#tb-correct")
    expect(page.get_by_text("All caught up")).to_be_visible()


def test_an_empty_correction_is_refused_in_words(page: Page, service: "Service") -> None:
    message = add_edited_answer(service, "Is there parking?", "No.", "Yes.")
    page.reload()
    page.fill("#tb-answer textarea", "  ")
    page.click("#tb-correct")
    expect(page.get_by_role("alert")).to_contain_text("is empty")
    assert decision_on(service.store, message) is None


def test_script_in_what_people_wrote_does_nothing_to_a_reviewer(
    page: Page, service: "Service"
) -> None:
    attack = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
    message = add_edited_answer(service, f"Hello {attack}", f"Answer {attack}", f"Better {attack}")
    service.store.add_feedback(message, "ann", "comment", {"text": attack})
    page.reload()
    expect(page.locator("#tb-case blockquote")).to_have_text(attack)
    page.wait_for_timeout(300)
    assert "pwned" not in page.title()
    assert page.locator("#tb-case :is(img, script)").count() == 0


def test_without_the_token_the_page_stays_shut(
    chromium: Browser, url: str, service: "Service"
) -> None:
    add_edited_answer(service, "What is your secret?", "None.", "A secret answer.")
    page = chromium.new_context(locale="en-US").new_page()
    page.goto(url)
    log_in(page, "wrong")
    expect(page.get_by_role("alert")).to_contain_text("does not open this page")
    assert "secret answer" not in page.content()
    page.context.close()


def test_a_reviewer_decides_by_the_name_of_the_key_until_logged_out_or_revoked(
    chromium: Browser, url: str, service: "Service"
) -> None:
    empty_queue(service)
    message = add_edited_answer(service, "Do you sell oars?", "No.", "Yes, of ash.")
    user = api_keys.create(service.store, "ann", "user")
    rita = api_keys.create(service.store, "rita", "reviewer")
    page = chromium.new_context(locale="en-US").new_page()
    page.set_default_timeout(30_000)
    page.goto(url)
    log_in(page, user.secret)
    expect(page.get_by_role("alert")).to_contain_text("key of role user")
    log_in(page, rita.secret)
    expect(page.locator("#tb-case")).to_contain_text("Do you sell oars?")
    expect(page.get_by_placeholder("Your name")).to_be_hidden()
    page.click("#tb-approve")
    expect(page.get_by_text("Saved. It is at work")).to_be_visible()
    decision = decision_on(service.store, message)
    assert decision is not None and decision.reviewer == "rita"
    (cookie,) = page.context.cookies()
    assert cookie.get("httpOnly") and rita.secret not in str(cookie.get("value"))
    page.click("#tb-leave")
    expect(page.get_by_placeholder("Key", exact=True)).to_be_visible()
    assert page.context.cookies() == []
    log_in(page, rita.secret)
    expect(page.locator("#tb-leave")).to_have_text("Log out (rita)")
    api_keys.revoke(service.store, rita.id)
    page.reload()
    expect(page.get_by_placeholder("Key", exact=True)).to_be_visible()
    page.context.close()


def test_no_handler_of_the_page_can_be_called_without_the_token(
    url: str, service: "Service"
) -> None:
    """Call every handler past the page."""
    message = add_edited_answer(
        service, "What is your other secret?", "None.", "Another secret answer."
    )
    root = url.removesuffix("/review")
    config = httpx.get(f"{root}/config").json()
    handlers = [d for d in config["dependencies"] if d["backend_fn"] and d["inputs"]]
    promotions = len(service.registry.history())
    for handler in handlers:
        values = [guess_value(config, name, message, service) for name in handler["inputs"]]
        output = call(root, handler["id"], values)
        assert "secret answer" not in output
    assert len(handlers) > 20
    assert decision_on(service.store, message) is None
    assert len(service.registry.history()) == promotions


def guess_value(
    config: dict[str, list[dict[str, object]]], name: int, message: str, service: "Service"
):  # type: ignore[no-untyped-def]
    """Return what an attacker would send for one of a handler's inputs."""
    kind = next(c["type"] for c in config["components"] if c["id"] == name)
    adapter = service.registry.adapters()[0].id
    return {"browserstate": "guess", "radio": message, "chatbot": []}.get(str(kind), adapter)


def call(root: str, handler: int, values: list[object]) -> str:
    """Run a handler through the queue, as the page's script does; return all of its answer."""
    session = f"attack{handler}"
    body = {"data": values, "fn_index": handler, "session_hash": session}
    joined = httpx.post(f"{root}/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined.text
    answer = httpx.get(
        f"{root}/gradio_api/queue/data", params={"session_hash": session}, timeout=30
    )
    return answer.text


def test_differences_are_marked_word_by_word_and_escaped() -> None:
    before, after = mark_differences("Open at <nine> today", "Open at <ten> today")
    assert before == "Open at &lt;<del>nine</del>&gt; today"
    assert after == "Open at &lt;<ins>ten</ins>&gt; today"
    assert mark_differences("It costs £4.95.", "It costs £6.95.")[1] == "It costs £<ins>6.95</ins>."
    assert "<del>" not in mark_differences("Nothing alike", "Something quite different here")[0]
