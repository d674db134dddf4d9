"""The page as it is sent: its language, icon and preview card, its size, and how it loads."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from chatbot.auth import api_keys
from chatbot.auth.access import Access
from chatbot.pages import page_template, theme
from chatbot.pages.chat import layout
from tests.fakes.scripted_engine import (
    ScriptedEngine,
    new_adapter,
    open_chat,
    open_service,
    send_and_wait,
    serve_pages,
)

if TYPE_CHECKING:
    from chatbot.service import Service

SHIFTS = """
  window.shifts = 0;
  new PerformanceObserver((list) => {
    for (const shift of list.getEntries()) if (!shift.hadRecentInput) window.shifts += shift.value;
  }).observe({type: "layout-shift", buffered: true});
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> "Service":
    root = tmp_path_factory.mktemp("template")
    return open_service(root, ScriptedEngine(), title="Willow & Finch", examples=["Open?"])


@pytest.fixture(scope="module")
def url(service: "Service") -> Iterator[str]:
    with serve_pages(service) as address:
        yield address


def test_a_page_is_small_on_the_wire(url: str) -> None:
    with httpx.stream("GET", url, headers={"accept-encoding": "gzip"}) as response:
        sent = b"".join(response.iter_raw())
    assert response.headers["content-encoding"] == "gzip"
    assert len(sent) < 40_000
    assert b"Willow &amp; Finch</title>" in gzip.decompress(sent)


def test_streams_of_events_are_never_compressed(url: str) -> None:
    """A compressor would hold the words of an answer back."""
    headers = {"accept-encoding": "gzip, br"}
    with httpx.stream("GET", f"{url}/gradio_api/heartbeat/x", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    address = f"{url}/v1/chat/completions"
    with httpx.stream("POST", address, json=body, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers


@pytest.mark.parametrize("path", ["", "review", "adapters"])
def test_the_page_is_called_by_the_bots_name_and_shows_nothing_of_gradio(
    url: str, path: str
) -> None:
    page = httpx.get(f"{url}/{path}").text
    head = re.sub(r"<script.*?</script>", "", page.partition("</head>")[0], flags=re.DOTALL)
    assert '<meta property="og:title" content="Willow &amp; Finch">' in head
    assert "radio" not in head.lower().replace("gradio-container", "")
    icon = httpx.get(f"{url}/favicon.ico")
    assert icon.content == page_template.ICON.read_bytes()
    assert icon.headers["content-type"].startswith("image/svg+xml")


def test_no_selector_depends_on_a_language() -> None:
    script = Path(page_template.__file__).with_name("pages.js").read_text()
    for text in (theme.CSS.read_text(), script):
        assert not re.search(r"\[(?:title|aria-label|placeholder)\s*[\^$*~|]?=", text)


@pytest.mark.parametrize("locale", ["de-DE", "ar", "zh-CN", "pt-BR"])
def test_the_page_is_english_in_every_browser(chromium: Browser, url: str, locale: str) -> None:
    with open_chat(chromium, url, locale=locale) as page:
        send_and_wait(page, "Hello")
        assert page.evaluate("document.documentElement.lang") == "en"
        titles = page.locator("#tb-chat .message-buttons button").evaluate_all(
            "(buttons) => buttons.map((button) => button.title)"
        )
        assert titles[2:] == ["Copy message", "Retry", "Undo", "Edit", "Like", "Dislike"]
        page.locator("#tb-chat .message-buttons button:has(.feather-edit-2)").last.click()
        submit = page.locator("#tb-chat .message-buttons").last.locator("button").first
        label = submit.evaluate("(button) => getComputedStyle(button, '::after').content")
        assert label == '"Send to a reviewer"'


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_loading_a_chat_moves_nothing_and_keeps_the_sidebar_as_it_was(
    chromium: Browser, url: str, size: tuple[int, int]
) -> None:
    viewport = {"width": size[0], "height": size[1]}
    with open_chat(chromium, url, viewport=viewport) as page:
        page.add_init_script(SHIFTS)
        send_and_wait(page, "Hello")
        slow = page.context.new_cdp_session(page)  # whose parts appear one by one
        slow.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        assert load_and_measure(page) < 0.1
        wide = size[0] > 1000
        expect(page.locator("#tb-sidebar.open")).to_have_count(int(wide))
        if wide:
            page.click("#tb-sidebar .toggle-button")
            assert load_and_measure(page) < 0.1
            expect(page.locator("#tb-sidebar.open")).to_have_count(0)


def load_and_measure(page: Page) -> float:
    """Load the page anew and return its cumulative layout shift."""
    page.reload()
    expect(page.locator("#tb-chat .user-row")).to_be_visible()
    expect(page.locator(".tb-pill")).to_be_visible()
    page.wait_for_timeout(700)
    return float(page.evaluate("window.shifts"))


def test_customers_see_neither_adapters_names_nor_pages_that_they_may_not_open(
    chromium: Browser, tmp_path: Path
) -> None:
    service = open_service(tmp_path, ScriptedEngine())
    service.access = Access(service.store, service.home.root, loopback=False)
    rita = api_keys.create(service.store, "rita", "reviewer")
    with serve_pages(service) as url, open_chat(chromium, url) as page:
        expect(page.locator(".tb-pill")).to_have_text("Ready")
        expect(page.locator(".tb-header nav")).to_have_count(0)
        send_and_wait(page, "Hello")
        first = service.speaking
        service.registry.promote(new_adapter(service), "gate", "cycle", "better")
        expect(page.locator(".tb-pill")).to_contain_text("Updated")
        send_and_wait(page, "Hello again")
        expect(page.locator(".tb-note")).to_have_text("A newer version speaks from here on")
        service.registry.promote(first, "person", "otto", "back")
        service.rollout.follow()
        send_and_wait(page, "Hello once more")
        expect(page.locator(".tb-note").last).to_have_text("An earlier version speaks from here on")
        assert not re.search(r"\ba-[0-9a-f]{12}\b", page.inner_text("body"))
        page.request.post(f"{url}/session", data={"key": rita.secret})
        page.reload()
        expect(page.locator(".tb-header nav a")).to_have_text(["Chat", "Review", "Adapters"])
        expect(page.locator(".tb-pill")).to_contain_text(first)


def test_the_line_above_the_chat_is_right_from_the_first_moment(
    chromium: Browser, url: str, service: "Service"
) -> None:
    """Not only when it is refreshed: what the server knew at its start is old."""
    adapter = new_adapter(service, seed=11)
    service.registry.promote(adapter, "gate", "cycle", "better")
    service.rollout.follow()
    with open_chat(chromium, url) as page:
        shown = page.locator(".tb-pill")
        shown.wait_for()
        assert adapter in shown.inner_text()


def test_an_empty_chat_invites_to_ask_what_the_bot_knows(
    service: "Service", monkeypatch: pytest.MonkeyPatch
) -> None:
    assert layout._invitation(service) == "Ask anything."
    monkeypatch.setattr(layout, "STARTER_NAME", service.base.name)
    assert "shop" in layout._invitation(service)
    own = service.chat_settings.model_copy(update={"welcome": "Ask about tea."})
    monkeypatch.setattr(service, "chat_settings", own)
    assert layout._invitation(service) == "Ask about tea."
