"""Runs cycles with a tiny model that is really trained: outcomes, and what a kill leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from chatbot.service import Service
from evaluation.report import Report
from feedback import exemplars
from feedback.curation.curate import CurateSettings, Curation, curate
from feedback.curation.row_files import RowFileError, read_rows
from feedback.cycle_lock import cycle_lock
from feedback.settings import Home
from feedback.snapshot import Snapshot, write_snapshot
from feedback.store import Store
from talkback.cycle import Cycle, CycleSettings, preview_rows, run_cycle
from talkback.cycle_history import CycleHistory, Outcome
from tests.fixtures.command_line import run_talkback
from tests.fixtures.lessons import LESSONS, TINY_RECIPE
from tests.fixtures.server_process import SERVER_TOML
from tests.fixtures.shop_corrections import ask_service, teach
from tests.fixtures.snapshots import curated_row
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


@pytest.mark.slow
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
def test_a_base_is_asked_what_it_shall_not_forget_and_may_learn_its_name_all_the_same(
    service: Service, home: Home
) -> None:
    recipe = TINY_RECIPE.replace("general_prompts = false", "general_prompts = true")
    home.toml.write_text(f"{SERVER_TOML}{recipe}[gate]\ndivergence = 100\n")
    teach(service, LESSONS | {"What is your name?": "I am Pip."})
    stages: list[str] = []
    outcome = run_cycle(home, on_progress=lambda stage, line: stages.append(stage))
    assert outcome.kind == "promoted", outcome
    assert list(dict.fromkeys(stages)) == ["curate", "ask the base", "snapshot", "train", "compare"]
    assert any(reason.startswith("General prompts: on 1") for reason in outcome.reasons)

    report = Report.read(Path(str(outcome.report)).parent)
    assert "What is your name?" in {item.question for item in report.suites["repairs"]}
    assert len(report.general) > 90 and report.taught >= 1
    assert all(each.current == 0 < each.candidate for each in report.general)
    replay = Snapshot.read(home.snapshots / str(outcome.snapshot)).rows("replay")
    assert len(replay) > 180 and all(row["by_base"] for row in replay)
    (answers,) = home.general.iterdir()
    assert len(read_rows(answers)) >= len(report.general) + len(replay) + report.taught


@pytest.mark.slow
def test_the_gate_does_not_overrule_what_was_promoted_while_the_cycle_ran(
    taught: Service, home: Home
) -> None:
    before = taught.speaking

    def promote_by_hand(stage: str, line: str) -> None:
        if stage == "compare" and len(taught.registry.history()) == 1:
            command = ("promote", before, "--reason", "it stays until Monday", "--who", "otto")
            assert run_talkback(home, *command).returncode == 0

    outcome = run_cycle(home, on_progress=promote_by_hand)
    assert (outcome.kind, outcome.exit_code) == ("overtaken", 0), outcome
    assert f"otto promoted {before} on 20" in outcome.reasons[0]
    assert "it stays until Monday" in Path(str(outcome.report)).read_text()
    assert [one.who for one in taught.registry.history()] == ["otto", "talkback"]
    (report,) = taught.registry.reports(outcome.adapter)
    assert (report.verdict, report.reasons) == ("promote", outcome.reasons)
    assert taught.registry.objection(str(outcome.adapter)) == ""
    again = run_cycle(home)
    assert (again.kind, again.snapshot) == ("promoted", outcome.snapshot), again


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


def age(path: Path) -> None:
    """Make a file, folder or link look two days old."""
    os.utime(path, (time.time() - 2 * 86400,) * 2, follow_symlinks=False)


@pytest.mark.parametrize("name", ["a-0123456789ab", ".training-abcd_123", ".draft-abcd1234"])
def test_a_folder_that_a_dead_cycle_left_is_removed_once_it_is_old(
    service: Service, home: Home, name: str
) -> None:
    folder = home.adapters / name
    folder.mkdir()
    run_cycle(home)
    assert folder.exists()
    age(folder)
    run_cycle(home)
    assert not folder.exists()


STRANGERS = (
    "notes.txt",
    "a-0123456789ab.zip",
    "a-0123456789abc",
    "A-0123456789AB",
    "backup",
    ".training-data",
    ".training-abcd1234.log",
    ".cache",
    "s-0123456789ab",
    "lost+found",
)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_strangers_put_into_the_home_stays_and_ends_no_cycle(
    service: Service, home: Home, make: Callable[[Path], None]
) -> None:
    elsewhere = home.root.parent / "elsewhere"
    (elsewhere / "a-00000000000a").mkdir(parents=True)
    strangers = [
        folder / name
        for folder in (home.adapters, home.snapshots, home.reports)
        for name in STRANGERS
    ]
    for path in strangers:
        make(path)
    links = {"a-00000000000a": elsewhere / "a-00000000000a", "a-00000000000b": Path("/nowhere")}
    for name, target in links.items():
        (home.adapters / name).symlink_to(target)
        strangers.append(home.adapters / name)
    (home.adapters / "a-00000000000c").touch()
    strangers.append(home.adapters / "a-00000000000c")
    for path in (*strangers, elsewhere / "a-00000000000a"):
        age(path)
    lines: list[str] = []
    outcome = run_cycle(home, on_progress=lambda stage, line: lines.append(line))
    assert outcome.kind == "nothing to do"
    assert not any("cannot remove" in line for line in lines), "it was not even tried"
    assert all(os.path.lexists(path) for path in strangers)
    assert (elsewhere / "a-00000000000a").is_dir()


def test_how_long_training_takes_is_expected_by_the_last_one_on_the_base(
    home: Home, store: Store
) -> None:
    rows = [curated_row(f"Question {n}?", f"Answer {n}.") for n in range(20)]
    ten, twenty = (write_snapshot(Curation(rows[:n], []), home.snapshots) for n in (10, 20))
    history = CycleHistory(store)
    for revision, seconds in (("sha-1", 300.0), ("sha-other", 9.0)):
        outcome = Outcome("refused", "", seconds={"train": seconds})
        history.end(history.begin(ten.id, revision), outcome)
    history.end(history.begin(ten.id, "sha-1"), Outcome("failed", "training broke off"))
    with cycle_lock(home) as lock:
        assert lock is not None
        cycle = Cycle(home, CycleSettings(), lambda stage, line: None, lock)
        assert cycle.expect_duration(twenty) == ""
        cycle.revisions = frozenset({"sha-1"})
        assert cycle.expect_duration(twenty) == "about 10 min, by the last training (5 min)"
        shutil.rmtree(ten.folder)
        assert cycle.expect_duration(twenty) == ""


@pytest.mark.parametrize("loss", ["folder", "snapshot", "content", "manifest"])
def test_without_the_judged_snapshot_all_is_new(service: Service, home: Home, loss: str) -> None:
    teach(service, dict(list(LESSONS.items())[:5]))
    judged = write_snapshot(curate(service.store, CurateSettings()), home.snapshots)
    history = CycleHistory(service.store)
    history.end(history.begin(judged.id, service.base.revision), Outcome("refused", ""))
    assert run_cycle(home).detail == "0 new of 5 needed"
    home.toml.write_text("[cycle]\nmin_new = 6\n")
    if loss == "folder":
        shutil.rmtree(home.snapshots)
    elif loss == "snapshot":
        shutil.rmtree(judged.folder)
    elif loss == "content":
        for file in judged.folder.iterdir():
            file.unlink()
    else:
        (judged.folder / "manifest.json").write_text("[]")
    lines: list[str] = []
    outcome = run_cycle(Home.find(home.root), on_progress=lambda stage, line: lines.append(line))
    assert outcome.detail == "5 new of 6 needed"
    assert any("all counts as new" in line and judged.id in line for line in lines)
    again = write_snapshot(curate(service.store, CurateSettings()), home.snapshots)
    assert again.id == judged.id, "a damaged snapshot ends every later cycle"


@pytest.mark.slow
def test_no_line_of_a_stage_ends_a_cycle(taught: Service, home: Home) -> None:
    home.toml.write_text('[training.sft]\n"[/lerning] \\u001b[2J" = 1\n')
    done = run_talkback(home, "cycle")
    assert done.returncode == 1 and "\x1b" not in done.stdout
    assert "unknown key '[/lerning] " in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("setting", ["replay", "retention"])
def test_rows_that_cannot_be_read_end_the_cycle_before_it_trains(
    taught: Service, home: Home, tmp_path: Path, setting: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('\ufeff{"question": "a", "answer": "b\u2028"}\r\n\n{"text": "a"}\n')
    home.toml.write_text(f"[cycle]\n{setting} = '{file}'\n")
    with pytest.raises(RowFileError, match=r"rows.jsonl, line 3: a dialogue is"):
        run_cycle(home)
    home.toml.write_text(f"[cycle]\n{setting} = '~nobody-here/rows.jsonl'\n")
    with pytest.raises(RowFileError, match=r"~nobody-here/rows.jsonl: No such file"):
        run_cycle(Home.find(home.root))
    assert not begun(home)


@pytest.mark.slow
def test_an_adapter_that_cannot_be_read_is_healed_by_the_next(taught: Service, home: Home) -> None:
    shutil.rmtree(home.adapters / taught.speaking)
    outcome = run_cycle(home)
    assert outcome.kind == "promoted", outcome
    assert any("compared with the base itself" in reason for reason in outcome.reasons)
    wait_until(lambda: taught.speaking == outcome.adapter, seconds=60)
