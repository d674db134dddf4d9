"""Plays the full circle in a real browser with a real server and cycle: the product's promise."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import load_file, save_file

from chatbot.model.base import end_token_ids, load_base
from chatbot.registry import Registry
from feedback.review.decisions import decide
from feedback.settings import Home
from feedback.store import Store
from talkback.cycle import run_cycle
from tests.fakes.scripted_engine import ANSWER, open_chat, send_message, wait_until_idle
from tests.fixtures.lessons import LESSONS, TINY_RECIPE
from tests.fixtures.server_process import SERVER_TOML, ServerProcess
from tests.fixtures.tiny_models import write_model
from tests.fixtures.waiting import wait_until

QUESTION, RIGHT = "When do you open?", "We open at ten."
LONG = SERVER_TOML.replace("max_tokens = 256", "max_tokens = 4000")


@pytest.fixture
def talkative(tmp_path: Path) -> Path:
    """A tiny base that comes to no end by itself: time enough for a stop, and for a swap."""
    folder = write_model(tmp_path / "base", max_position_embeddings=8192)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][sorted(end_token_ids(load_base(str(folder))))] /= 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def teach_the_others(server: ServerProcess, store: Store) -> None:
    """All lessons but the one of the browser: asked over the API, corrected by a reviewer."""
    for question, answer in LESSONS.items():
        if question != QUESTION:
            body = {"messages": [{"role": "user", "content": question}], "max_tokens": 8}
            response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
            decide(store, response["id"], "reviewer", "correct", answer)


def ask_stop_rate_and_edit(page: Page) -> None:
    send_message(page, QUESTION)
    expect(page.locator(ANSWER)).not_to_be_empty()
    page.click("#tb-composer .stop-button")
    wait_until_idle(page)
    expect(page.locator(".tb-stopped")).to_be_visible()
    page.locator("#tb-chat button[title=Dislike]:visible").last.click()
    expect(page.get_by_text("Saved. Thank you.").first).to_be_visible()
    page.locator("#tb-chat button[title=Edit]:visible").last.click()
    page.locator("#tb-chat textarea").fill(RIGHT)
    page.click("#tb-chat button[title=Submit]")
    expect(page.get_by_text("a reviewer will look at it")).to_be_visible()


def approve(chromium: Browser, url: str) -> None:
    with chromium.new_context(locale="en-US") as context, context.new_page() as page:
        page.goto(f"{url}/review")
        expect(page.locator("#tb-case")).to_contain_text(QUESTION)
        page.get_by_placeholder("Your name").fill("rita")
        page.click("#tb-approve")
        expect(page.get_by_text("All caught up")).to_be_visible()


def ask_anew(page: Page, question: str) -> None:
    page.click("#tb-new")
    expect(page.locator("#tb-chat .user-row")).to_have_count(0)
    send_message(page, question)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_someone_corrects_an_answer_a_cycle_runs_and_the_next_answer_is_right(
    chromium: Browser, start_server: Callable[..., ServerProcess], home: Home, talkative: Path
) -> None:
    home.toml.write_text(LONG + TINY_RECIPE)
    server = start_server(base=str(talkative)).ready()
    store = Store(home.db)
    registry = Registry(store, home)
    with open_chat(chromium, server.url) as page:
        page.set_default_timeout(60_000)
        ask_stop_rate_and_edit(page)
        approve(chromium, server.url)
        ask_anew(page, "when do you open")
        expect(page.locator(ANSWER)).to_have_text(RIGHT)  # at once: the approved answer
        expect(page.locator(".tb-approved")).to_be_visible()

        teach_the_others(server, store)
        untaught = registry.promotion()
        outcome = run_cycle(home)
        assert outcome.kind == "promoted", outcome
        expect(page.locator("#tb-status")).to_contain_text(str(outcome.adapter))
        ask_anew(page, QUESTION)
        expect(page.locator(ANSWER)).to_have_text(RIGHT)  # for good: the adapter itself
        expect(page.locator(".tb-approved")).to_have_count(0)

        assert untaught is not None
        registry.rollback("otto")
        expect(page.locator("#tb-status")).to_contain_text(untaught.adapter)
        ask_anew(page, "Tell me a story")
        expect(page.locator(ANSWER)).not_to_be_empty()
        registry.promote(str(outcome.adapter), "person", "otto", "back to the better one")
        wait_until(lambda: speaking(server) == outcome.adapter, seconds=60)
        expect(page.locator("#tb-composer .stop-button")).to_be_visible()  # the old one still talks
        wait_until_idle(page)
        expect(page.locator("#tb-status")).to_contain_text(str(outcome.adapter))

    last_answer = store.row(
        "select id, content from message where role = 'assistant' order by rowid desc"
    )
    assert last_answer is not None
    speaker = store.speaker(last_answer["id"])
    assert speaker is not None
    assert speaker.adapter == untaught.adapter
    assert speaker.finish in ("stop", "length")  # to its own end, not to the swap's
    assert last_answer["content"] == alone(server, untaught.adapter, "Tell me a story", 4000)
    wait_until(lambda: ask_model(server, QUESTION) == RIGHT, seconds=60)


def speaking(server: ServerProcess) -> str:
    return str(httpx.get(f"{server.url}/healthz", timeout=60).json()["adapter"])


def alone(server: ServerProcess, adapter: str, question: str, tokens: int) -> str:
    """What this adapter says when nothing happens beside it."""
    return ask_model(server, question, model=f"talkback:{adapter}", max_tokens=tokens)


def ask_model(server: ServerProcess, question: str, **body: object) -> str:
    body = {"messages": [{"role": "user", "content": question}], **body}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
    return str(answer["choices"][0]["message"]["content"])
