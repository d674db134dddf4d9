"""Runs the cycle: new feedback becomes a snapshot, an adapter, a report, a verdict, a promotion.

    talkback cycle            # from cron as often as you like; --dry-run shows the rows

One cycle runs at a time. Training and evaluation are processes of their own, at the lowest
priority, so that chat beside them stays usable. Rows are written last: a cycle that dies leaves
folders nobody refers to, and the next one succeeds.
"""

import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from chatbot.chat_settings import ChatSettings
from chatbot.general.split import partition_taught, split_answers
from chatbot.known_bases import BaseLocation
from chatbot.model.base_name import find_folder
from chatbot.registry import AdapterRow, PromotionConflictError, Registry
from evaluation.report import Report, Verdict
from feedback import exemplars
from feedback.curation.curate import CurateSettings, Curation, curate
from feedback.curation.row_files import Record, read_dialogues, read_rows
from feedback.cycle_lock import CycleLock, cycle_lock
from feedback.ids import describe_duration, new_id
from feedback.publish import replace_file
from feedback.settings import Home, Settings
from feedback.snapshot import Snapshot, SnapshotError, partition_outdated, write_snapshot
from feedback.store import Store
from talkback.cycle_history import VERDICT_OUTCOMES, CycleHistory, Outcome
from talkback.stage import StageError, StageProgress, StageTimer, run_stage

ORPHAN_SECONDS = 3600
"""Age from which an adapter folder without a row is no longer somebody's work in progress."""

TRAINED = ("sft", "dpo", "replay")
"""The files of a snapshot that train."""

OWN_ADAPTER_FOLDER = re.compile(r"a-[0-9a-f]{12}|\.(training|draft)-[a-z0-9_]{8}")
"""The names that training and the first start give: an adapter's id, and drafts by tempfile."""


class CycleSettings(Settings):
    """Holds ``[cycle]`` of talkback.toml."""

    table: ClassVar[str] = "cycle"

    min_new: int = 5
    """How many new reviews or choices make a cycle worth its while."""
    attempts: int = 3
    """How often the same snapshot is tried when a stage fails or is killed."""
    threads: int = 1
    """Threads of training and evaluation; on two cores, one leaves the other to the chat."""
    general_prompts: bool = True
    """Whether a base that comes with no rows of its own against forgetting is asked some hundred
    general prompts, once: its answers are replayed, and show what an adapter has forgotten."""
    replay: Path | None = None
    """Rows mixed into training against forgetting. Default: ``replay.jsonl`` of the base."""
    retention: Path | None = None
    """Rows that must stay answered right. Default: ``retention.jsonl`` of the base."""


def run_cycle(
    home: Home, *, force: bool = False, on_progress: StageProgress = lambda stage, line: None
) -> Outcome:
    """Run one cycle, unless another is running.

    `force` trains even when little is new or the snapshot has failed too often before.
    """
    with cycle_lock(home) as lock:
        if lock is None:
            return Outcome("busy", "another cycle is running; this one leaves it to that")
        settings = CycleSettings.read(home)
        return Cycle(home, settings, on_progress, lock).run(force)


def preview_rows(home: Home) -> Curation:
    """Return what a cycle would learn from now; decides and writes nothing."""
    return curate(Store(home.db), CurateSettings.read(home), persist=False)


class Cycle:
    """Carries feedback to a promotion, stage by stage; read `run` first."""

    def __init__(
        self, home: Home, settings: CycleSettings, on_progress: StageProgress, lock: CycleLock
    ) -> None:
        self.home = home
        self.settings = settings
        self.thinking = ChatSettings.read(home).max_thinking
        """Most tokens of a thought before an answer, 0 where the bot does not think: what trains
        and is compared is the answer as it is served."""
        self.on_progress = on_progress
        self.store = Store(home.db)
        self.registry = Registry(self.store, home)
        self.history = CycleHistory(self.store)
        self.timer = StageTimer(on_progress, lock.enter_stage)
        self.retention: list[Record] = []
        self.general: Path | None = None
        """What the base answers to the general prompts; a base that comes with rows of its own
        against forgetting needs none."""
        self.revisions: frozenset[str | None] = frozenset()
        """All revisions that are the base in service."""
        self.base = BaseLocation("", None)
        self.training_notes: list[str] = []
        """What training did not manage, for the outcome's reasons."""
        newest, self.base_change = self.registry.promotion(), self.registry.base_change()
        self.seen = newest.id if newest else None
        """The promotion that the verdict is about: another one since is not overruled."""

    def run(self, force: bool) -> Outcome:
        """Learn, and say in the outcome's reasons where the base is another one since."""
        outcome = self.learn_new_feedback(force)
        if self.base_change is None:
            return outcome
        return replace(outcome, reasons=[self.base_change.reason, *outcome.reasons])

    def learn_new_feedback(self, force: bool) -> Outcome:
        """Curate, snapshot, train, compare, judge, promote; each stage's folder feeds the next."""
        current = self.registry.current()
        if current is None:
            return Outcome("nothing to do", "no adapter yet: start `talkback serve` once")
        self.revisions = self.registry.bases.revisions(current.base_revision)
        self.remove_orphans()
        with self.timer.measure("curate"):
            curation = curate(self.store, CurateSettings.read(self.home))
        new, needed = self.count_new_sources(curation), self.count_needed()
        if new < needed and not force:
            return Outcome("nothing to do", f"{new} new of {needed} needed")
        if not any(row.side == "train" for row in curation.rows):
            return Outcome("nothing to do", "no row to train on: approve or correct some answers")
        # What the user has to mend, a base that moved or a bad file, is no failed attempt.
        self.base = self.registry.locate_base(current)
        self.retention = self.read_base_rows("retention")
        if self.settings.general_prompts and not self.find_base_rows("replay"):
            try:
                with self.timer.measure("ask the base"):
                    self.general = self.ask_base()
            except StageError as error:
                return Outcome("failed", str(error), seconds=self.timer.seconds)
        with self.timer.measure("snapshot"):
            snapshot = self.write_snapshot(curation)
        failed = self.history.count_failed_attempts(snapshot.id, self.revisions)
        if failed >= self.settings.attempts and not force:
            detail = f"snapshot {snapshot.id} failed {failed} times; --force tries it again"
            return Outcome("nothing to do", detail, snapshot.id)
        return self.learn(snapshot, current)

    def learn(self, snapshot: Snapshot, current: AdapterRow) -> Outcome:
        """Train on the snapshot and judge the result; record beginning and end of the attempt."""
        cycle_id = self.history.begin(snapshot.id, current.base_revision)
        try:
            outcome = self.attempt(snapshot, current)
        except StageError as error:
            outcome = Outcome("failed", str(error), snapshot.id, seconds=self.timer.seconds)
        self.history.end(cycle_id, outcome)
        return outcome

    def attempt(self, snapshot: Snapshot, current: AdapterRow) -> Outcome:
        """Train, compare, judge; every row about the new adapter is written at the very end."""
        with self.timer.measure("train"):
            self.on_progress("train", self.expect_duration(snapshot))
            candidate = self.train(snapshot, current)
        if candidate.name == current.id:
            return Outcome("nothing to do", "training gave the adapter in service", snapshot.id)
        with self.timer.measure("compare"):
            report_folder = self.compare(snapshot, candidate, current)
        return self.conclude(snapshot, candidate, current, report_folder)

    # -- The stages

    def write_snapshot(self, curation: Curation) -> Snapshot:
        """Write what trains into a folder: curated rows, and replay of what nobody corrected."""
        corrected = [row.rejected for row in curation.rows if row.kind == "sft" and row.rejected]
        replay, _ = partition_outdated(self.read_base_rows("replay"), corrected)
        if self.general and not self.settings.replay:
            questions = [row.prompt[-1]["content"] for row in curation.rows]
            replay, _ = partition_taught(split_answers(read_rows(self.general))[0], questions)
        return write_snapshot(curation, self.home.snapshots, replay=replay)

    def ask_base(self) -> Path:
        """Have the base answer the general prompts, unless it has; return the file of it."""
        module = "chatbot.general.answers"
        result = self.run_on_base("ask the base", module, "--out", self.home.general)
        return Path(result["answers"])

    def train(self, snapshot: Snapshot, current: AdapterRow) -> Path:
        """Train a new adapter in a process of its own; return its folder beside the others."""
        identity = self.registry.bases.identity(current.base_revision)
        result = self.run_on_base(
            "train",
            "training.train",
            *("--snapshot", self.home.snapshots / snapshot.id),
            *("--out", self.home.adapters),
            *("--thinking", self.thinking),
            *(("--base-identity", identity) if identity else ()),
        )
        if failure := result["metrics"].get("dpo", {}).get("failed"):
            self.training_notes = [f"The choices did not train, the corrections did: {failure}"]
        return self.home.adapters / str(result["id"])

    def compare(self, snapshot: Snapshot, candidate: Path, current: AdapterRow) -> Path:
        """Compare the candidate with the adapter in service; return the report's folder."""
        rows = [*snapshot.rows("repairs"), *snapshot.rows("held_out")]
        corrected = [row["rejected"] for row in rows if "rejected" in row]
        retention, _ = partition_outdated(self.retention, corrected)
        out = self.home.reports / new_id("rep")
        with TemporaryDirectory() as folder:
            retention_file = Path(folder) / "retention.jsonl"
            replace_file(retention_file, "".join(json.dumps(row) + "\n" for row in retention))
            self.run_on_base(
                "compare",
                "evaluation.compare",
                *("--candidate", candidate),
                *("--current", self.home.adapters / current.id),
                *("--snapshot", snapshot.folder),
                *("--retention", retention_file),
                *(("--general", self.general) if self.general else ()),
                *("--out", out),
                *("--thinking", self.thinking),
            )
        return out

    def conclude(
        self, snapshot: Snapshot, candidate: Path, current: AdapterRow, report_folder: Path
    ) -> Outcome:
        """Write adapter, report, promotion and graduations in one transaction.

        Either all of it is there afterwards or nothing, so that a kill here promotes no adapter
        without its reasons. Raises StageError for a report without a verdict.
        """
        report = Report.read(report_folder)
        verdict = report.verdict
        if verdict is None:
            raise StageError(f"{report_folder} holds a report without a verdict; compare again")
        kind = VERDICT_OUTCOMES[verdict.kind]
        with self.store.write():
            self.registry.register(
                candidate, parent=current.id, snapshot=snapshot.id, lineage=snapshot.sources
            )
            conflict = self.promote(candidate.name, verdict, report_folder.name)
            if conflict:
                kind = "overtaken"
                verdict = replace(verdict, reasons=[conflict, *verdict.reasons])
                replace(report, verdict=verdict).write(report_folder)
            self.registry.add_report(
                report_folder.name,
                adapter=candidate.name,
                against=current.id,
                verdict=verdict.kind,
                reasons=verdict.reasons,
            )
            self.graduate(candidate.name, report)
        return Outcome(
            kind,
            f"{candidate.name} against {current.id}",
            snapshot.id,
            candidate.name,
            str(report_folder / "report.md"),
            [*verdict.reasons, *self.training_notes],
            self.timer.seconds,
        )

    def promote(self, adapter: str, verdict: Verdict, report: str) -> str:
        """Put the adapter in service if the verdict says so; return what stands against it, or "":
        the gate does not overrule a promotion that it has not seen."""
        if verdict.kind != "promote":
            return ""
        try:
            reason = " ".join(verdict.reasons)
            self.registry.promote(adapter, "gate", "gate", reason, report, seen=self.seen)
        except PromotionConflictError:
            newest = self.registry.history()[0]
            return (
                f"Not promoted: while this cycle ran, {newest.describe()}. Promote {adapter} by "
                "hand, or let the next cycle compare with what is in service now."
            )
        return ""

    def graduate(self, adapter: str, report: Report) -> None:
        """Take approved answers that the adapter gave unaided out of its prompts."""
        comparisons = [*report.suites["repairs"], *report.suites["held_out"]]
        unaided = {(c.question, c.expected) for c in comparisons if c.candidate.right}
        for approved in exemplars.active_answers(self.store, adapter):
            if (approved.question, approved.answer) in unaided:
                exemplars.graduate(self.store, approved.id, adapter)

    # -- What the stages need

    def count_new_sources(self, curation: Curation) -> int:
        """Count the reviews and choices that came or went since the last snapshot that was judged
        on this base: on a base that never learnt, all of them."""
        sources = {source for row in curation.rows for source in row.sources}
        judged_id = self.history.last_judged_snapshot(self.revisions)
        try:
            judged = Snapshot.read(self.home.snapshots / judged_id).sources if judged_id else []
        except SnapshotError as error:
            self.on_progress("curate", f"all counts as new: {error}")
            judged = []
        return len(sources.symmetric_difference(judged))

    def expect_duration(self, snapshot: Snapshot) -> str:
        """Return in a line how long training may take, by the rows of the last one on this base;
        the first one measures its own steps."""
        last = self.history.last_training(self.revisions)
        if last is None:
            return ""
        try:
            before, seconds = Snapshot.read(self.home.snapshots / last[0]), last[1]
        except SnapshotError:
            return ""  # removed or damaged: it is only an estimate
        rows, rows_before = (
            sum(one.counts[name] for name in TRAINED) for one in (snapshot, before)
        )
        expected = describe_duration(seconds * rows / max(1, rows_before))
        return f"about {expected}, by the last training ({describe_duration(seconds)})"

    def count_needed(self) -> int:
        """Return how many new sources a cycle needs: where another base has learnt before, a base
        that has not learns all of it anew, however little that is."""
        anew = self.history.has_judged() and not self.history.last_judged_snapshot(self.revisions)
        return 1 if anew else self.settings.min_new

    def read_base_rows(self, name: str) -> list[Record]:
        """Read replay or retention rows: of the file that the settings name, else the base's."""
        configured: Path | None = getattr(self.settings, name)
        if configured:
            return read_dialogues(Path(os.path.expanduser(configured)))
        file = self.find_base_rows(name)
        return read_dialogues(file) if file else []

    def find_base_rows(self, name: str) -> Path | None:
        """Return the file of replay or retention rows that the base comes with, if it does."""
        folder = find_folder(self.base.name)
        file = folder and folder / f"{name}.jsonl"
        return file if file and file.is_file() else None

    def run_on_base(self, name: str, module: str, *arguments: object) -> Any:
        """Run a stage's process on the base of the adapter in service; return its JSON result."""
        base: list[object] = ["--home", self.home.root, "--base-model", self.base.name]
        if self.base.commit:
            base += ["--revision", self.base.commit]
        return run_stage(
            module,
            [*map(str, (*arguments, *base))],
            threads=self.settings.threads,
            on_output=lambda line: self.on_progress(name, line),
        )

    def remove_orphans(self) -> None:
        """Remove old adapter folders of ours without a row, which cycles that died have left.

        What others have put there (by whatever name, or as a link) is theirs and stays.
        """
        known = {adapter.id for adapter in self.registry.adapters()}
        for folder in self.home.adapters.iterdir():
            ours = OWN_ADAPTER_FOLDER.fullmatch(folder.name) and folder.name not in known
            if not ours or folder.is_symlink() or not folder.is_dir():
                continue
            try:
                if time.time() - folder.stat().st_mtime > ORPHAN_SECONDS:
                    shutil.rmtree(folder)
            except OSError as error:
                self.on_progress("curate", f"cannot remove what is left over: {error}")
