"""Uses the adapters page in a real browser: who speaks, the reports, promotion and rollback."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, expect

from feedback.cycle_lock import cycle_lock
from tests.fakes.scripted_engine import ScriptedEngine, new_adapter, open_service, serve_pages

if TYPE_CHECKING:
    from chatbot.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> "Service":
    return open_service(tmp_path_factory.mktemp("adapters"), ScriptedEngine())


@pytest.fixture(scope="module")
def url(service: "Service") -> Iterator[str]:
    with serve_pages(service) as address:
        yield f"{address}/adapters"


@pytest.fixture
def page(chromium: Browser, url: str) -> Iterator[Page]:
    context = chromium.new_context(locale="en-US")
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(url)
    expect(page.locator("#tb-list label").first).to_be_visible()
    yield page
    context.close()


def select_adapter(page: Page, adapter: str) -> None:
    page.reload()
    page.locator("#tb-list label", has_text=adapter).click()
    expect(page.locator("#tb-adapter h2")).to_have_text(adapter)


def test_the_first_adapter_speaks_from_the_first_start(page: Page, service: "Service") -> None:
    expect(page.locator("#tb-now")).to_contain_text(f"{service.speaking} is speaking")
    expect(page.locator(".tb-history li p")).to_have_text("Promoted at the first start")
    expect(page.locator(".tb-facts")).to_contain_text("Base")
    expect(page.locator(".tb-facts")).not_to_contain_text(service.base.name)  # a path on the server
    expect(page.locator("#tb-promote")).to_be_disabled()


def test_a_running_cycle_is_shown_with_its_stage_until_it_ends(
    page: Page, service: "Service"
) -> None:
    card = page.locator("#tb-cycle")
    expect(card).to_have_count(0)
    with cycle_lock(service.home) as lock:
        assert lock is not None
        for stage in ("curate", "train"):
            lock.enter_stage(stage)
            expect(card).to_contain_text(f"A cycle is running: {stage}")
        expect(card).to_contain_text("The stage began just now, the cycle just now.")
    expect(card).to_have_count(0)


def test_a_report_is_shown_with_its_verdict_and_reasons_and_in_full(
    page: Page, service: "Service"
) -> None:
    adapter = new_adapter(service, seed=1)
    folder = service.home.reports / "rep-1"
    folder.mkdir()
    (folder / "report.md").write_text("| suite | after |\n|---|---|\n| repairs | <b>9/9</b> |\n")
    service.registry.add_report(
        "rep-1",
        adapter=adapter,
        against=service.speaking,
        verdict="refuse",
        reasons=["collapse: 41 of 60 questions got one answer <script>"],
    )
    select_adapter(page, adapter)
    expect(page.locator(".tb-report .tb-badge")).to_have_text("refused")
    expect(page.locator(".tb-report li")).to_contain_text("collapse: 41 of 60")
    page.get_by_role("button", name="The whole report").click()
    expect(page.locator("td", has_text="9/9")).to_be_visible()
    assert page.locator("td b").count() == 0


def test_an_operator_promotes_and_rolls_back_by_name(page: Page, service: "Service") -> None:
    before, adapter = service.speaking, new_adapter(service, seed=2)
    select_adapter(page, adapter)
    page.get_by_placeholder("Why?").fill("reads better")
    page.get_by_placeholder("Your name").fill("otto")
    page.click("#tb-promote")
    expect(page.get_by_text("is promoted.")).to_be_visible()
    expect(page.locator("#tb-now")).to_contain_text(f"{adapter} is speaking")
    expect(page.locator(".tb-history li").first).to_contain_text("reads better")
    assert service.speaking == adapter
    newest = service.registry.history()[0]
    assert (newest.by, newest.who, newest.reason) == ("person", "otto", "reads better")
    page.click("#tb-rollback")
    expect(page.locator("#tb-now")).to_contain_text(f"{before} is speaking")
    assert service.registry.history()[0].adapter == before


def test_what_the_gate_refused_is_promoted_only_when_confirmed_with_name_and_reason(
    page: Page, service: "Service"
) -> None:
    before, adapter = service.registry.promotion(), new_adapter(service, seed=5)
    against = service.speaking
    service.registry.add_report(
        "rep-5", adapter=adapter, against=against, verdict="refuse", reasons=["It forgets."]
    )
    select_adapter(page, adapter)
    box = page.get_by_role("checkbox", name="The gate did not find it better")
    reason, name = page.get_by_placeholder("Why?"), page.get_by_placeholder("Your name")
    for ticked, why, who in (
        (False, "for a look", "otto"),
        (True, "", "otto"),
        (True, "for a look", " "),
    ):
        box.set_checked(ticked)
        reason.fill(why)
        name.fill(who)
        page.click("#tb-promote")
        expect(page.get_by_role("alert")).to_contain_text("It forgets.; confirm")
        assert service.registry.promotion() == before
        select_adapter(page, adapter)
    box.check()
    reason.fill("for a look")
    name.fill("otto")
    page.click("#tb-promote")
    expect(page.locator("#tb-now")).to_contain_text(f"{adapter} is speaking")
    newest = service.registry.history()[0]
    assert (newest.by, newest.who, newest.reason) == ("person", "otto", "for a look")


def test_who_rolls_back_second_learns_who_did_it_first(page: Page, service: "Service") -> None:
    page.reload()
    expect(page.locator("#tb-rollback")).to_be_enabled()
    made = service.registry.rollback("rita", "too terse")
    service.rollout.follow()
    page.click("#tb-rollback")
    expect(page.get_by_role("alert")).to_contain_text(f"rita promoted {made.adapter} on 20")
    assert service.registry.promotion() == made


def test_a_refused_adapter_leaves_the_old_one_speaking_and_says_why(
    page: Page, service: "Service"
) -> None:
    before, broken = service.speaking, new_adapter(service, seed=3)
    (service.home.adapters / broken / "adapter_model.safetensors").write_bytes(b"broken")
    select_adapter(page, broken)
    page.click("#tb-promote")
    expect(page.locator("#tb-now .tb-warn")).to_contain_text("refused")
    expect(page.locator("#tb-now")).to_contain_text(f"{before} is speaking")
    service.registry.promote(before, "person", "otto", "back")


def test_a_promotion_elsewhere_shows_by_itself(page: Page, service: "Service") -> None:
    adapter = new_adapter(service, seed=4)
    service.registry.promote(adapter, "gate", "cycle", "better on repairs")
    expect(page.locator("#tb-now")).to_contain_text(f"{adapter} is speaking")
    expect(page.locator(".tb-history li").first).to_contain_text("better on repairs")
