"""A home made before the rooms were renamed goes on: its chat, its people, its cycle.

The home lies in fixtures/old_home, with the script that made it with the code of that time.
"""

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.service import Service
from feedback.settings import Home
from talkback.cycle import run_cycle
from tests.fakes.scripted_engine import ANSWER, send_and_wait, serve_pages
from tests.fixtures.shop_corrections import ask_service, teach

FIXTURE = Path(__file__).parent / "fixtures" / "old_home" / "home.tar.gz"
NEW_LESSONS = {
    "Do you sell boats?": "Not since spring.",
    "Who paints the signs?": "Old Tom does.",
    "Is the roof flat?": "No, it leans.",
    "May dogs come in?": "Small ones may.",
    "Which bus goes there?": "Take line nine.",
    "Do you mend clocks?": "On Mondays only.",
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The unpacked home, its base, and what is known of it; the base is where it was made no more,
    so its path is written anew."""
    with tarfile.open(FIXTURE) as tar:
        tar.extractall(tmp_path, filter="data")
    with closing(sqlite3.connect(tmp_path / "home" / "talkback.db")) as db, db:
        guards = db.execute(
            "select name, sql from sqlite_master where type = 'trigger' and tbl_name = 'adapter'"
        ).fetchall()
        for name, _ in guards:
            db.execute(f"drop trigger {name}")
        db.execute("update adapter set base = ?", (str(tmp_path / "base"),))
        for _, sql in guards:
            db.execute(sql)
    return tmp_path


@pytest.fixture
def known(old: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((old / "known.json").read_text())
    return found


def open_service(old: Path) -> Service:
    return Service.open(Home.find(old / "home"), str(old / "base"), poll_seconds=0.1)


def test_the_person_is_known_and_the_promoted_adapter_speaks(
    old: Path, known: dict[str, Any]
) -> None:
    with closing(open_service(old)) as service:
        assert service.speaking == known["adapter"]
        person = BrowserIdentities(service.home.root).verify(known["token"])
        assert person is not None
        (conversation,) = service.store.conversations(person)
        newest = service.store.latest_message(conversation.id)
        assert newest is not None
        questions = [m.content for m in service.store.thread(newest.id) if m.role == "user"]
        assert questions == known["questions"]


@pytest.mark.slow
def test_a_cycle_learns_on_top_of_what_the_home_knows(old: Path, known: dict[str, Any]) -> None:
    with closing(open_service(old)) as service:
        teach(service, NEW_LESSONS)
        outcome = run_cycle(service.home)
        assert outcome.kind in ("promoted", "refused", "not enough evidence"), outcome
        assert service.registry.adapter(str(outcome.adapter)).parent == known["adapter"]
        assert ask_service(service, "Do you sell boats?", unaided=False)[0] == ("Not since spring.")


def test_the_chat_goes_on_in_the_browser_that_began_it(
    old: Path, known: dict[str, Any], chromium: Browser
) -> None:
    with closing(open_service(old)) as service, serve_pages(service) as url:
        storage = json.loads((old / "browser.json").read_text().replace(known["url"], url))
        context = chromium.new_context(locale="en-US", storage_state=storage)
        page = context.new_page()
        page.goto(url)
        for question in known["questions"]:
            expect(page.locator("#tb-chat .user-row", has_text=question)).to_be_visible()
        before = page.locator(ANSWER).count()
        send_and_wait(page, "And at night?")
        assert page.locator(ANSWER).count() == before + 1
        person = BrowserIdentities(service.home.root).verify(known["token"])
        (conversation,) = service.store.conversations(str(person))
        newest = service.store.latest_message(conversation.id)
        assert newest is not None
        asked = [m.content for m in service.store.thread(newest.id) if m.role == "user"]
        assert asked == [*known["questions"], "And at night?"]
        context.close()
