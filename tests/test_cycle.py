"""Runs cycles with a tiny model that is really trained: outcomes, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from chatbot.service import Service
from evaluation.report import Report
from feedback import exemplars
from feedback.cycle_lock import cycle_lock
from feedback.settings import Home
from feedback.store import Store
from talkback.cycle import preview_rows, run_cycle
from tests.fixtures.lessons import LESSONS, TINY_RECIPE
from tests.fixtures.server_process import SERVER_TOML
from tests.fixtures.shop_corrections import ask_service, teach
from tests.fixtures.waiting import wait_until


@pytest.fixture
def taught(service: Service, home: Home) -> Service:
    home.toml.write_text(SERVER_TOML + TINY_RECIPE)
    teach(service, LESSONS)
    return service


def test_without_a_served_base_there_is_nothing_to_do(home: Home) -> None:
    outcome = run_cycle(home)
    assert outcome.kind == "nothing to do"
    assert "talkback serve" in outcome.detail


def test_little_feedback_is_left_to_grow(service: Service, home: Home) -> None:
    teach(service, dict(list(LESSONS.items())[:2]))
    outcome = run_cycle(home)
    assert (outcome.kind, outcome.detail) == ("nothing to do", "2 new of 5 needed")


def test_one_cycle_at_a_time(taught: Service, home: Home) -> None:
    with cycle_lock(home) as ours:
        assert ours is not None
        assert run_cycle(home).kind == "busy"


def test_a_dry_run_decides_nothing(taught: Service, home: Home) -> None:
    assert len(preview_rows(home).rows) >= len(LESSONS)
    assert taught.store.rows("select * from split") == []


def test_what_was_corrected_is_learnt_promoted_and_spoken(taught: Service, home: Home) -> None:
    before = taught.speaking
    stages: list[str] = []
    outcome = run_cycle(home, on_progress=lambda stage, line: stages.append(stage))
    assert outcome.kind == "promoted", outcome
    assert list(dict.fromkeys(stages)) == ["curate", "snapshot", "train", "compare"]
    wait_until(lambda: taught.speaking == outcome.adapter, seconds=60)
    assert outcome.adapter != before

    report = Report.read(Path(str(outcome.report)).parent)
    learnt = [item for item in report.suites["repairs"] if item.candidate.right]
    assert len(learnt) >= 5
    for item in learnt:
        assert ask_service(taught, item.question)[0] == item.expected
    still_in_prompts = {one.question for one in exemplars.active_answers(taught.store)}
    assert still_in_prompts.isdisjoint(item.question for item in learnt)

    lineage = taught.registry.adapter(str(outcome.adapter)).lineage
    assert set(lineage) >= {row["id"] for row in taught.store.rows("select id from review limit 1")}
    assert run_cycle(home).kind == "nothing to do"


@pytest.mark.slow
def test_a_failing_stage_is_told_and_not_tried_for_ever(taught: Service, home: Home) -> None:
    home.toml.write_text("[training.sft]\nlerning_rate = 1\n")
    before = taught.registry.promotion()
    for _ in range(3):
        outcome = run_cycle(home)
        assert outcome.kind == "failed"
        assert outcome.exit_code == 1
        assert "lerning_rate" in outcome.detail
    outcome = run_cycle(home)
    assert outcome.kind == "nothing to do"
    assert "--force" in outcome.detail
    assert taught.registry.promotion() == before


@pytest.fixture
def cycle(home: Home) -> Iterator[subprocess.Popen[str]]:
    """``talkback cycle`` in a process of its own."""
    command = [sys.executable, "-m", "talkback", "cycle", "--json", "--home", str(home.root)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    yield process
    process.kill()
    process.communicate()


def begun(home: Home) -> bool:
    return bool(Store(home.db).rows("select * from cycle"))


def training(home: Home) -> bool:
    return any(home.adapters.glob(".training-*"))


def comparing(home: Home) -> bool:
    return len([*home.adapters.glob("a-*")]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", [begun, training, comparing])
def test_a_killed_cycle_leaves_the_service_as_it_was_and_the_next_succeeds(
    taught: Service, home: Home, cycle: subprocess.Popen[str], stage: Callable[[Home], bool]
) -> None:
    before, speaking = taught.registry.promotion(), taught.speaking
    wait_until(lambda: stage(home), seconds=120)
    children = psutil.Process(cycle.pid).children(recursive=True)
    os.kill(cycle.pid, signal.SIGKILL)
    cycle.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == [], "a killed cycle's stage goes on"
    assert taught.registry.promotion() == before
    assert taught.speaking == speaking
    assert ask_service(taught, "Hello?")[1]
    assert run_cycle(home).kind == "promoted"


def test_the_outcome_is_one_json_line(home: Home, cycle: subprocess.Popen[str]) -> None:
    out, _ = cycle.communicate(timeout=60)
    assert json.loads(out)["kind"] == "nothing to do"
    assert cycle.returncode == 0
