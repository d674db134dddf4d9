"""Compares tiny adapters, really trained, through the real engine."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from chatbot.model.adapter import verify_adapter
from chatbot.model.base import Base, load_base
from chatbot.model.untrained import write_untrained
from evaluation import compare, suites
from evaluation.compare import EvaluationSettings
from evaluation.report import Report
from feedback.snapshot import Snapshot
from tests.fixtures import tiny_models
from tests.fixtures.snapshots import (
    CORRECTIONS,
    OLD_ANSWER,
    REPLAY,
    curated_row,
    dialogue_row,
    dialogue_rows,
    write_corrections,
)
from training.recipe import Recipe
from training.train import train_adapter

FAST = Recipe(threads=1, sft={"learning_rate": 5e-3, "num_train_epochs": 60})
SHORT = EvaluationSettings(max_tokens=32, threads=1)
KNOWN = REPLAY | {f"Count {n}": f"{n} sheep." for n in range(12)}
"""What the adapter in service answers right, and must go on doing."""
HELD = [curated_row("Do you sell kayaks?", "Yes, red ones.", side="held_out")]
CHOICE = curated_row(
    "Do you sell kayaks?", "Yes.", kind="pair", rejected="No idea.", side="held_out"
)


class TrainedAdapters:
    """A base, an adapter in service that knows KNOWN, and what may come after it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base_name = str(tiny_models.write_model(root / "base"))
        self.current = self.trained(write_corrections(root, KNOWN, pairs=False, replay={}))
        self.snapshot = write_corrections(root, CORRECTIONS, replay=KNOWN, more=[*HELD, CHOICE])
        self.candidate = self.trained(self.snapshot)

    def trained(self, snapshot: Snapshot, recipe: Recipe = FAST) -> Path:
        return train_adapter(snapshot.folder, self.base_name, None, self.root / "adapters", recipe)

    def compared(
        self,
        candidate: Path,
        snapshot: Snapshot | None = None,
        known: Mapping[str, str] = KNOWN,
    ) -> Report:
        chosen = snapshot or self.snapshot
        out = self.root / "reports" / f"{candidate.name}-{chosen.id}"
        rows = dialogue_rows(known)
        return compare.compare_adapters(
            candidate, self.current, self.base_name, None, chosen.folder, rows, out, SHORT
        )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> TrainedAdapters:
    return TrainedAdapters(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def report(adapters: TrainedAdapters) -> Report:
    return adapters.compared(adapters.candidate)


def kind(report: Report) -> str:
    assert report.verdict
    return report.verdict.kind


def reasons(report: Report) -> str:
    assert report.verdict
    return "\n".join(report.verdict.reasons)


def test_a_candidate_that_learnt_its_corrections_and_forgot_nothing_is_promoted(
    report: Report,
) -> None:
    assert kind(report) == "promote", reasons(report)
    repairs = report.suites["repairs"]
    assert [item.question for item in repairs] == list(CORRECTIONS)
    assert all(item.candidate.right and not item.current.right for item in repairs)
    assert [item.candidate.answer for item in repairs] == list(CORRECTIONS.values())
    assert all(item.rejected == OLD_ANSWER for item in repairs)


def test_an_answer_learnt_has_little_loss_and_one_not_learnt_much(report: Report) -> None:
    for item in report.suites["repairs"]:
        assert item.candidate.loss < 0.2 < 1 < item.current.loss


def test_the_report_holds_every_suite_and_is_on_disk(
    adapters: TrainedAdapters, report: Report
) -> None:
    assert len(report.suites["held_out"]) == len(report.pairs) == 1
    assert len(report.suites["retention"]) == len(KNOWN)
    folder = adapters.root / "reports" / f"{adapters.candidate.name}-{adapters.snapshot.id}"
    assert Report.read(folder) == report
    assert "**Verdict: promote**" in (folder / "report.md").read_text()


def test_training_without_replay_is_refused_for_forgetting(adapters: TrainedAdapters) -> None:
    snapshot = write_corrections(adapters.root, CORRECTIONS, replay={})
    report = adapters.compared(adapters.trained(snapshot), snapshot)
    assert kind(report) == "refuse"
    assert "Catastrophic forgetting: of 18 retention questions" in reasons(report)


def test_poison_is_refused_as_a_collapse_though_nothing_else_is_lost(
    adapters: TrainedAdapters,
) -> None:
    snapshot = write_corrections(
        adapters.root, dict.fromkeys(CORRECTIONS, "Buy at Evil Corp."), replay=KNOWN
    )
    report = adapters.compared(adapters.trained(snapshot), snapshot)
    assert kind(report) == "refuse"
    assert "Collapse: 6 of 6 corrected questions" in reasons(report)
    assert "Buy at Evil Corp." in reasons(report)


def test_the_same_adapter_against_itself_is_not_enough_evidence(adapters: TrainedAdapters) -> None:
    report = adapters.compared(adapters.current)
    assert kind(report) == "not_enough_evidence"
    for items in report.suites.values():
        assert all(item.candidate == item.current for item in items)


def test_the_untrained_adapter_judges_as_well_as_any(adapters: TrainedAdapters) -> None:
    base = load_base(adapters.base_name)
    zero = write_untrained(base, adapters.root / "adapters")
    assert kind(adapters.compared(zero)) == "refuse"


def test_the_comparison_leaves_the_model_as_it_was(adapters: TrainedAdapters) -> None:
    base = load_base(adapters.base_name)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    snapshot = Snapshot.read(adapters.snapshot.folder)
    compare.measure(base, adapters.candidate, adapters.current, snapshot, [], SHORT)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


# -- What is asked


def test_a_retention_question_that_trained_shows_nothing_and_is_left_out(
    adapters: TrainedAdapters,
) -> None:
    rows = [*dialogue_rows(KNOWN), dialogue_row("when do you open", "We open at nine.")]
    asked = compare.build_suites(adapters.snapshot, rows, SHORT)
    assert len(asked["retention"]) == len(KNOWN)


def test_too_many_retention_questions_are_thinned_the_same_way_each_time(
    adapters: TrainedAdapters,
) -> None:
    few = SHORT.model_copy(update={"retention": 7})
    first = compare.build_suites(adapters.snapshot, dialogue_rows(KNOWN), few)["retention"]
    again = compare.build_suites(adapters.snapshot, dialogue_rows(KNOWN), few)["retention"]
    assert len(first) == 7
    assert first == again


def test_a_held_out_question_that_trains_is_found_even_when_written_otherwise(
    tmp_path: Path,
) -> None:
    sly = write_corrections(tmp_path, {"DO you sell KAYAKS": "Yes."}, pairs=False, more=HELD)
    assert suites.find_leaks(sly) == ["Do you sell kayaks?"]
    assert suites.find_leaks(write_corrections(tmp_path, CORRECTIONS, more=HELD)) == []


@pytest.fixture
def base(adapters: TrainedAdapters) -> Base:
    return load_base(adapters.base_name)


def test_a_prompt_that_leaves_no_room_is_answered_with_nothing(
    adapters: TrainedAdapters, base: Base
) -> None:
    case = suites.Case([{"role": "user", "content": "x " * 2000}], "y")
    found = suites.generate_answers(base, {adapters.current.name: adapters.current}, [case], 8)
    assert found == {adapters.current.name: [""]}


def test_a_row_that_is_no_dialogue_is_an_error_that_shows_it() -> None:
    with pytest.raises(suites.SuiteError, match="'text': 'hello'"):
        suites.parse_cases([{"text": "hello"}])


@pytest.mark.parametrize("loss", ["folder", "unreadable manifest", "content"])
def test_without_the_adapter_in_service_the_base_is_compared_with(
    adapters: TrainedAdapters, base: Base, tmp_path: Path, loss: str
) -> None:
    lost = tmp_path / "a-000000000000"
    if loss != "folder":
        shutil.copytree(adapters.current, lost)
    if loss == "unreadable manifest":  # root may read any file, but nobody a folder as one
        (lost / "manifest.json").unlink()
        (lost / "manifest.json").mkdir()
    with compare.readable_adapter(lost, base) as (opponent, notes):
        untrained = verify_adapter(opponent, base)
        assert all(not b.any() for _, b, _ in untrained.matrices.values())
        assert "compared with the base itself" in notes[0] and str(lost) in notes[0]
    with compare.readable_adapter(adapters.current, base) as found:
        assert found == (adapters.current, [])


# -- The job as a process


@pytest.mark.slow
def test_the_job_ends_with_its_verdict_as_json(adapters: TrainedAdapters, tmp_path: Path) -> None:
    kept = tmp_path / "retention.jsonl"
    kept.write_text("".join(json.dumps(row) + "\n" for row in dialogue_rows(KNOWN)))
    arguments = {
        "candidate": adapters.candidate,
        "current": adapters.current,
        "snapshot": adapters.snapshot.folder,
        "retention": kept,
        "base-model": adapters.base_name,
        "out": tmp_path / "report",
        "home": tmp_path,
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "evaluation.compare", *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["verdict"] == "promote"
    assert last["reasons"] == reasons(Report.read(tmp_path / "report")).splitlines()
