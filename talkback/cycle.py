"""The cycle: new feedback becomes a snapshot, an adapter, a report, a verdict, perhaps a promotion.

    talkback cycle            # from cron as often as you like; --dry-run shows the rows

One cycle runs at a time. Training and evaluation are processes of their own, at the lowest
priority, so that chat beside them stays usable. Rows are written last: a cycle that dies leaves
folders nobody refers to, and the next one succeeds.
"""

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from chatbot.registry import AdapterRow, Registry
from evaluation.report import Report
from feedback import exemplars
from feedback.curation.curate import CurateSettings, Curation, curate
from feedback.ids import new_id, now
from feedback.settings import Home, Settings, SettingsError
from feedback.snapshot import Snapshot, partition_outdated, write_snapshot
from feedback.store import Store
from talkback.stage import StageFailed, stage

Kind = Literal["busy", "nothing to do", "promoted", "refused", "not enough evidence", "failed"]
VERDICTS: dict[str, Kind] = {
    "promote": "promoted",
    "refuse": "refused",
    "not_enough_evidence": "not enough evidence",
}
LEFT_BEHIND = 3600
"""Seconds after which a folder without a row is no longer somebody's work in progress."""
Tell = Callable[[str, str], None]
"""Called with a stage's name and a line about its progress."""


class CycleSettings(Settings):
    """``[cycle]`` of talkback.toml."""

    table: ClassVar[str] = "cycle"

    min_new: int = 5
    """How many new reviews or choices make a cycle worth its while."""
    attempts: int = 3
    """How often the same snapshot is tried when a stage fails or is killed."""
    threads: int = 1
    """Threads of training and evaluation; on two cores, one leaves the other to the chat."""
    replay: Path | None = None
    """Rows mixed into training against forgetting. Default: ``replay.jsonl`` of the base."""
    retention: Path | None = None
    """Rows that must stay answered right. Default: ``retention.jsonl`` of the base."""


@dataclass(frozen=True)
class Outcome:
    """How a cycle ended, in its own words."""

    kind: Kind
    detail: str
    snapshot: str | None = None
    adapter: str | None = None
    report: str | None = None
    reasons: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 for every normal outcome: cron shall hear of failures only."""
        return int(self.kind == "failed")


def run(home: Home, *, force: bool = False, tell: Tell = lambda stage, line: None) -> Outcome:
    """One cycle. ``force`` trains even when little is new or the snapshot was judged before."""
    with lock(home) as ours:
        if not ours:
            return Outcome("busy", "another cycle is running; this one leaves it to that")
        settings = CycleSettings.read(home)
        return Cycle(home, settings, tell).run(force)


@contextmanager
def lock(home: Home) -> Iterator[bool]:
    """Hold the home's one cycle lock; False when another process has it.

    The lock is the kernel's: it goes with its process, however that dies.
    """
    with home.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


class Cycle:
    """The story, from feedback to promotion."""

    def __init__(self, home: Home, settings: CycleSettings, tell: Tell) -> None:
        self.home = home
        self.settings = settings
        self.tell = tell
        self.store = Store(home.db)
        self.registry = Registry(self.store, home)
        self.seconds: dict[str, float] = {}

    def run(self, force: bool) -> Outcome:
        """Curate, snapshot, train, compare, judge, promote; each stage's folder feeds the next."""
        current = self.registry.current()
        if current is None:
            return Outcome("nothing to do", "no adapter yet: start `talkback serve` once")
        self.sweep()
        with self.timed("curate"):
            curation = curate(self.store, CurateSettings.read(self.home))
        new = self.new_sources(curation)
        if new < self.settings.min_new and not force:
            return Outcome("nothing to do", f"{new} new of {self.settings.min_new} needed")
        if not any(row.side == "train" for row in curation.rows):
            return Outcome("nothing to do", "no row to train on: approve or correct some answers")
        with self.timed("snapshot"):
            snapshot = self.snapshot(curation, current)
        before = self.attempts(snapshot)
        if before >= self.settings.attempts and not force:
            detail = f"snapshot {snapshot.id} failed {before} times; --force tries it again"
            return Outcome("nothing to do", detail, snapshot.id)
        return self.learn(snapshot, current)

    def learn(self, snapshot: Snapshot, current: AdapterRow) -> Outcome:
        """Train on the snapshot and judge the result; the cycle's rows frame the attempt."""
        cycle = new_id("cyc")
        with self.store.write() as db:
            row = {"id": cycle, "snapshot": snapshot.id, "started_at": now()}
            db.insert("cycle", row)
        try:
            outcome = self.attempt(snapshot, current)
        except StageFailed as failure:
            outcome = Outcome("failed", str(failure), snapshot.id, seconds=self.seconds)
        with self.store.write() as db:
            end = {"cycle_id": cycle, "outcome": outcome.kind, "detail": asdict(outcome)}
            db.insert("cycle_end", end | {"ended_at": now()})
        return outcome

    def attempt(self, snapshot: Snapshot, current: AdapterRow) -> Outcome:
        """Train, compare, judge; every row about the new adapter is written at the very end."""
        with self.timed("train"):
            candidate = self.train(snapshot, current)
        if candidate.name == current.id:
            return Outcome("nothing to do", "training gave the adapter in service", snapshot.id)
        with self.timed("compare"):
            folder = self.compare(snapshot, candidate, current)
        return self.conclude(snapshot, candidate, current, folder)

    def snapshot(self, curation: Curation, current: AdapterRow) -> Snapshot:
        """What trains, as a folder: curated rows, and replay of what nobody has corrected."""
        old = [row.rejected for row in curation.rows if row.kind == "sft" and row.rejected]
        replay, _ = partition_outdated(self.rows("replay", current), old)
        return write_snapshot(curation, self.home.snapshots, replay=replay)

    def train(self, snapshot: Snapshot, current: AdapterRow) -> Path:
        """A new adapter folder beside the others."""
        answer = self.stage(
            "train", "training.train", current,
            "--snapshot", self.home.snapshots / snapshot.id, "--out", self.home.adapters,
        )  # fmt: skip
        return self.home.adapters / str(answer["id"])

    def compare(self, snapshot: Snapshot, candidate: Path, current: AdapterRow) -> Path:
        """A report on the candidate against the adapter in service; its folder."""
        corrected = [*snapshot.rows("repairs"), *snapshot.rows("held_out")]
        old = [row["rejected"] for row in corrected if "rejected" in row]
        retention, _ = partition_outdated(self.rows("retention", current), old)
        out = self.home.reports / new_id("rep")
        with TemporaryDirectory() as folder:
            rows = Path(folder) / "retention.jsonl"
            rows.write_text("".join(json.dumps(row) + "\n" for row in retention))
            self.stage(
                "compare", "evaluation.compare", current,
                "--candidate", candidate, "--current", self.home.adapters / current.id,
                "--snapshot", snapshot.folder, "--retention", rows, "--out", out,
            )  # fmt: skip
        return out

    def conclude(
        self, snapshot: Snapshot, candidate: Path, current: AdapterRow, folder: Path
    ) -> Outcome:
        """The verdict and all rows, in one transaction: adapter, report, promotion, graduations."""
        report = Report.read(folder)
        verdict = report.verdict
        if verdict is None:
            raise StageFailed(f"{folder} holds a report without a verdict; compare again")
        with self.store.write():
            self.registry.register(
                candidate, parent=current.id, snapshot=snapshot.id, lineage=snapshot.sources
            )
            self.registry.add_report(
                folder.name, adapter=candidate.name, against=current.id,
                verdict=verdict.kind, reasons=verdict.reasons,
            )  # fmt: skip
            if verdict.kind == "promote":
                reason = " ".join(verdict.reasons)
                self.registry.promote(candidate.name, "gate", "gate", reason, folder.name)
            self.graduate(candidate.name, report)
        return Outcome(
            VERDICTS[verdict.kind], f"{candidate.name} against {current.id}", snapshot.id,
            candidate.name, str(folder / "report.md"), verdict.reasons, self.seconds,
        )  # fmt: skip

    def graduate(self, adapter: str, report: Report) -> None:
        """Approved answers that the adapter gave unaided leave its prompts."""
        items = [*report.suites["repairs"], *report.suites["held_out"]]
        unaided = {(item.question, item.expected) for item in items if item.candidate.right}
        for approved in exemplars.active_answers(self.store, adapter):
            if (approved.question, approved.answer) in unaided:
                exemplars.graduate(self.store, approved.id, adapter)

    def new_sources(self, curation: Curation) -> int:
        """How many reviews and choices came or went since the last snapshot that was judged."""
        now_there = {source for row in curation.rows for source in row.sources}
        row = self.store.row(
            f"""select snapshot from cycle join cycle_end on cycle_id = id
            where outcome in ({", ".join("?" * len(VERDICTS))}) order by cycle.rowid desc""",
            tuple(VERDICTS.values()),
        )
        judged = Snapshot.read(self.home.snapshots / row["snapshot"]).sources if row else []
        return len(now_there.symmetric_difference(judged))

    def attempts(self, snapshot: Snapshot) -> int:
        """How many cycles tried this snapshot and never came to a verdict."""
        row = self.store.row(
            f"""select count(*) as n from cycle left join cycle_end on cycle_id = id
            where snapshot = ? and coalesce(outcome, '') not in
            ({", ".join("?" * len(VERDICTS))})""",
            (snapshot.id, *VERDICTS.values()),
        )
        return int(row["n"]) if row else 0

    def rows(self, name: str, current: AdapterRow) -> list[dict[str, Any]]:
        """Replay or retention rows: the file that the settings name, else the base's own."""
        told: Path | None = getattr(self.settings, name)
        file = told or Path(current.base) / f"{name}.jsonl"
        if told and not file.is_file():
            raise SettingsError(f"{name} = {str(file)!r} in [cycle]: there is no such file")
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def stage(self, name: str, module: str, current: AdapterRow, *arguments: object) -> Any:
        """Run one stage on the base of the adapter in service; its JSON answer."""
        base: list[object] = ["--home", self.home.root, "--base-model", current.base]
        if current.base_revision and not Path(current.base).is_dir():
            base += ["--revision", current.base_revision]
        return stage(
            module, [*map(str, (*arguments, *base))],
            threads=self.settings.threads, tell=lambda line: self.tell(name, line),
        )  # fmt: skip

    def sweep(self) -> None:
        """Remove what cycles that died have left: old adapter folders that no row speaks of."""
        known = {adapter.id for adapter in self.registry.adapters()}
        for folder in self.home.adapters.iterdir():
            if folder.name not in known and time.time() - folder.stat().st_mtime > LEFT_BEHIND:
                shutil.rmtree(folder)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how many seconds a stage takes."""
        self.tell(name, "")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)


def rows_now(home: Home) -> Curation:
    """What a cycle would learn from now; decides and writes nothing."""
    return curate(Store(home.db), CurateSettings.read(home), persist=False)


def last_end(store: Store) -> dict[str, Any] | None:
    """How the last cycle that trained ended."""
    row = store.row("select outcome, ended_at from cycle_end order by rowid desc")
    return dict(row) if row else None
