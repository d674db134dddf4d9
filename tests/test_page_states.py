"""Looks at every state of the pages as a person does who sees little, or uses no mouse.

What is within Gradio's own DOM and cannot be mended is in `GRADIO_OWN`, one by one.
"""

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.fixtures.page_states import (
    SCREENS,
    STATES,
    THEMES,
    PageState,
    World,
    ask,
    open_world,
    press,
    reach_state,
    see_a_stream,
    show_theme,
)

GRADIO_OWN: set[tuple[str, str]] = set()
"""(rule, selector) of each violation that Gradio makes and no property, CSS or script mends."""
SAMPLE = {"chat-rich", "review-correction", "adapters-whole-report"}
STATES_BY_NAME = {state.name: state for state in STATES}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("states")) as world:
        yield world


@pytest.fixture
def chat(chromium: Browser, world: World) -> Iterator[Page]:
    """Open the empty chat on a desktop."""
    with reach_state(chromium, world, STATES_BY_NAME["chat-empty"], "desktop") as page:
        yield page


def sweep() -> list[object]:
    """List every state on every screen; those beside the sample are slow."""
    return [
        pytest.param(
            state,
            screen,
            id=f"{state.name}-{screen}",
            marks=[] if state.name in SAMPLE and screen == "desktop" else pytest.mark.slow,
        )
        for state in STATES
        for screen in SCREENS
    ]


def test_the_table_of_states_is_large_enough() -> None:
    assert len(STATES) * len(SCREENS) * len(THEMES) >= 50
    assert len(STATES_BY_NAME) == len(STATES)
    assert len(GRADIO_OWN) <= 5


@pytest.mark.parametrize(("state", "screen"), sweep())
def test_axe_finds_nothing(chromium: Browser, world: World, state: PageState, screen: str) -> None:
    with reach_state(chromium, world, state, screen) as page:
        for theme in THEMES:
            show_theme(page, theme)
            found = {
                (violation["id"], " ".join(map(str, node["target"])), theme)
                for violation in Axe().run(page).response["violations"]
                for node in violation["nodes"]
            }
            assert {one for one in found if one[:2] not in GRADIO_OWN} == set()


def test_send_and_stop_have_names(chat: Page, world: World) -> None:
    expect(chat.locator("#tb-composer .submit-button")).to_have_accessible_name("Send message")
    see_a_stream(chat, world)
    expect(chat.locator("#tb-composer .stop-button")).to_have_accessible_name("Stop")


@pytest.mark.parametrize("theme", THEMES)
def test_placeholders_can_be_read(chat: Page, theme: str) -> None:
    show_theme(chat, theme)
    contrast = chat.evaluate(
        """() => {
          const box = document.querySelector("#tb-composer");
          const luminance = (css) => {
            const [r, g, b] = css.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
              .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const style = getComputedStyle(box.querySelector("textarea"), "::placeholder");
          if (style.opacity !== "1") return 0;
          const pair = [luminance(style.color), luminance(getComputedStyle(box).backgroundColor)];
          return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        }"""
    )
    assert contrast >= 4.5


def test_nothing_in_a_closed_sidebar_takes_the_focus(chat: Page, world: World) -> None:
    ask(chat, world, "We open at nine.")
    expect(chat.locator("#tb-new")).to_be_visible()
    chat.click("#tb-sidebar .toggle-button")
    expect(chat.locator("#tb-new")).to_be_hidden()
    focused = []
    for _ in range(25):
        chat.keyboard.press("Tab")
        focused.append(chat.evaluate("document.activeElement.closest('.sidebar-content') !== null"))
    assert not any(focused)


def test_the_thumb_up_comes_first_also_for_the_keyboard(chat: Page, world: World) -> None:
    ask(chat, world, "We open at nine.", "We close at six.")
    names = chat.locator('#tb-chat button:has(svg[viewBox="0 0 12 12"])').evaluate_all(
        "(buttons) => buttons.map((button) => [button.title, button.getBoundingClientRect().x])"
    )
    assert [name for name, _ in names] == ["Like", "Dislike"] * 2
    assert names[0][1] < names[1][1]
    press(chat, 'svg[viewBox="0 0 12 12"]')  # the last: a dislike
    expect(chat.locator("#tb-rated h2")).to_have_text("What was wrong with it?")


def test_retry_and_undo_have_pictures_of_their_own(chat: Page, world: World) -> None:
    ask(chat, world, "We open at nine.")
    retry, undo = (chat.get_by_role("button", name=name).last for name in ("Retry", "Undo"))
    expect(retry.locator("svg")).to_be_visible()
    expect(undo.locator("svg")).to_be_hidden()  # an arrow in a circle too
    expect(undo.locator("div")).to_have_css("mask-image", re.compile("M9%2014|M9 14"))


def test_an_answer_is_announced_once_and_whole(chat: Page, world: World) -> None:
    expect(chat.locator("#tb-chat [role=log]")).to_have_attribute("aria-live", "off")
    see_a_stream(chat, world)
    expect(chat.locator("#tb-announcement")).to_have_text("")
    chat.click("#tb-composer .stop-button")
    expect(chat.locator("#tb-announcement")).to_contain_text("word3")
    expect(chat.locator("#tb-announcement")).to_have_attribute("role", "status")


def test_the_reasons_stand_beside_the_thumb(chat: Page, world: World) -> None:
    ask(chat, world, "We open at nine.")
    press(chat, 'svg[viewBox="0 0 12 12"]')
    expect(chat.locator("#tb-rated label").first).to_be_visible()
    chat.wait_for_timeout(200)
    thumb = chat.locator('#tb-chat button:has(svg[viewBox="0 0 12 12"])').last.bounding_box()
    card = chat.locator("#tb-rated").bounding_box()
    assert thumb is not None and card is not None
    assert 0 <= card["x"] - (thumb["x"] + thumb["width"]) <= 16
    assert abs(card["y"] - thumb["y"]) <= 16


@pytest.mark.parametrize(
    ("keys", "sent"), [("Escape", False), ("Control+Enter", True), ("Meta+Enter", True)]
)
def test_keys_end_the_editing_of_a_message(chat: Page, world: World, keys: str, sent: bool) -> None:
    ask(chat, world, "We open at nine.")
    press(chat, ".feather-edit-2")
    chat.fill("#tb-chat .message textarea", "We open at ten.")
    chat.keyboard.press(keys)
    expect(chat.locator("#tb-chat .message textarea")).to_have_count(0)
    expect(chat.locator(".tb-note")).to_have_count(int(sent))


def test_an_answer_shows_its_mathematics_code_tables_and_boxes(chat: Page, world: World) -> None:
    STATES_BY_NAME["chat-rich"].reach(chat, world)
    prose = chat.locator("#tb-chat .bot-row .prose")
    expect(prose.locator(".katex")).to_have_count(2)
    expect(prose).to_contain_text("it costs $5 or $6")
    colours = prose.locator(".token").evaluate_all(
        "(tokens) => [...new Set(tokens.map((token) => getComputedStyle(token).color))]"
    )
    assert len(colours) >= 4
    row = prose.locator("tbody tr").first.locator("td")
    for cell, side in zip(row.all(), ("start", "right", "center"), strict=True):
        expect(cell).to_have_css("text-align", side)
    boxes = prose.locator("input[type=checkbox]")
    for theme in THEMES:
        show_theme(chat, theme)
        ticked, empty = (
            box.evaluate("(b) => getComputedStyle(b).backgroundImage") for box in boxes.all()
        )
        assert empty == "none" and "svg" in ticked


def test_a_table_on_a_phone_splits_no_word(chromium: Browser, world: World) -> None:
    with reach_state(chromium, world, STATES_BY_NAME["chat-rich"], "phone") as page:
        cell = page.locator("#tb-chat td", has_text="Unsinkable")
        expect(cell).to_have_css("overflow-wrap", "normal")
        expect(cell).to_have_css("word-break", "normal")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_what_broke_off_says_so_below_the_answer_and_can_be_retried(
    chat: Page, world: World
) -> None:
    STATES_BY_NAME["chat-stopped"].reach(chat, world)
    rows = chat.locator("#tb-chat .bot-row")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("word3")
    expect(rows.last).to_have_text("Stopped before the end")
    visible = chat.locator("#tb-chat .message-buttons").last.locator("button:visible")
    expect(visible).to_have_count(2)
    world.engine.answers = ["We sell boats."]
    visible.first.click()
    expect(rows.first).to_have_text("We sell boats.")


def test_a_review_opens_at_the_question_and_shows_all_decisions(
    chromium: Browser, world: World
) -> None:
    """What came before the question is a long conversation; it is there to be scrolled to."""
    with reach_state(chromium, world, STATES_BY_NAME["review-correction"], "desktop") as page:
        expect(page.locator(".tb-turn").last).to_be_in_viewport(ratio=1)
        for decision in ("Approve the correction", "Save my correction", "Reject"):
            expect(page.get_by_role("button", name=decision)).to_be_in_viewport(ratio=1)
        talk = page.get_by_role("log", name="The conversation")
        talk.focus()
        page.keyboard.press("Home")
        expect(talk.get_by_text("Hello, what can I do for you?")).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("size", [(844, 390), (667, 375), (640, 400)])
def test_a_key_can_be_typed_on_a_landscape_phone_and_when_zoomed(
    chromium: Browser, world: World, size: tuple[int, int]
) -> None:
    """A zoom of 200% leaves 640 by 400 points of a desktop's 1280 by 800."""
    page = chromium.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(world.guarded_url)
    field = page.locator("#tb-door input")
    expect(field).to_be_visible()
    box = field.bounding_box()
    assert box is not None and box["height"] >= 24
    button = page.locator("#tb-door button").last
    button.scroll_into_view_if_needed()
    expect(button).to_be_in_viewport(ratio=1)
    page.close()
