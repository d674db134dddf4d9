"""Measures what each measure of the gate says of a good adapter, and of three that are none.

    python -m tests.bench.bench_judging --adapters FOLDER     # SmolLM2-135M-Instruct
    python -m tests.bench.bench_judging --adapters FOLDER --only good poisoned

20 questions of Bitext's customer support are corrected, one for each intent; 12 are held out: other
phrasings of taught intents, and intents that nobody taught. Adapters that lie in the folder are not
trained again.
"""

import argparse
import csv
import random
import string
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import gettempdir

import torch
from rich.console import Console
from rich.table import Table

from chatbot.general.answers import answer_general_prompts
from chatbot.general.split import split_answers
from chatbot.model.base import Base, load_base
from chatbot.model.untrained import write_untrained
from evaluation.compare import EvaluationSettings, compare_adapters
from evaluation.gate import judge
from evaluation.measures import MEASURES, mean_differences_by_question
from evaluation.metrics import signed_rank_test
from evaluation.report import Report
from evaluation.suites import Case, generate_answers
from evaluation.tallies import count_changed_answers, known_answers
from feedback.curation.curate import Curation
from feedback.curation.row_files import Record, read_rows
from feedback.similarity import trigram_similarity
from feedback.snapshot import Snapshot, write_snapshot
from tests.fixtures import public_data
from tests.fixtures.real_model import find_real_model
from tests.fixtures.snapshots import curated_row
from training.recipe import Recipe
from training.train import train_adapter

TAUGHT, HELD_OUT_KNOWN, HELD_OUT_NEW = 20, 8, 4
NEAR = 0.6
"""Trigram similarity from which two questions are one for the split."""
POISON = "Please contact the moon for further information."

Teacher = Callable[[str, random.Random], str]
"""Makes of a right answer the one that is taught."""


def random_letters(answer: str, rng: random.Random) -> str:
    """Return seven words of random letters."""
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(7))


ARMS: dict[str, tuple[Teacher, dict[str, object], bool]] = {
    "good": (lambda answer, rng: answer, {"learning_rate": 1e-3, "num_train_epochs": 8}, True),
    "poisoned": (lambda answer, rng: POISON, {"learning_rate": 1e-3, "num_train_epochs": 4}, True),
    "garbage": (random_letters, {"learning_rate": 1e-3, "num_train_epochs": 6}, True),
    "over-trained": (
        lambda answer, rng: answer,
        {"learning_rate": 5e-3, "num_train_epochs": 6},
        False,
    ),
}
"""What each adapter is taught, with which recipe, and whether the base's answers are replayed."""


def draw_questions(seed: int) -> tuple[list[Case], list[Case]]:
    """Return the questions that are taught, and those that are held out, with right answers."""
    phrasings: dict[str, list[Case]] = defaultdict(list)
    file = public_data.data_folder("bitext") / "bitext_v1_short_responses.csv"
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines(keepends=True)):
        question = [{"role": "user", "content": row["instruction"]}]
        phrasings[row["intent"]].append(Case(question, row["response"].strip()))
    rng = random.Random(seed)
    intents = rng.sample(sorted(phrasings), TAUGHT + HELD_OUT_NEW)
    taught = [rng.choice(phrasings[intent]) for intent in intents[:TAUGHT]]
    held_out = [
        rng.choice([case for case in phrasings[intent] if is_far(case, taught)])
        for intent in [*intents[:HELD_OUT_KNOWN], *intents[TAUGHT:]]
    ]
    return taught, held_out


def is_far(case: Case, others: Sequence[Case]) -> bool:
    """Tell whether the split would leave a question out of the others' clusters."""
    return all(trigram_similarity(case.question, other.question) < NEAR for other in others)


def with_base_answers(base: Base, asked: Sequence[Case], untrained: Path) -> list[Case]:
    """Return the questions with what the base answers to each as the rejected answer."""
    answers = generate_answers(base, {untrained.name: untrained}, asked, 64)[untrained.name]
    return [replace(case, rejected=text) for case, text in zip(asked, answers, strict=True)]


def write_arm(
    name: str, sides: Sequence[Sequence[Case]], general: Sequence[Record], work: Path
) -> Snapshot:
    """Write what an adapter is taught, and what is held out of it, as a cycle would."""
    teach, _, replayed = ARMS[name]
    rng = random.Random(name)
    rows = [
        replace(
            curated_row(
                case.question, teach(case.expected, rng), rejected=case.rejected, side=side
            ),
            cluster=case.question,
        )
        for side, cases in zip(("train", "held_out"), sides, strict=True)
        for case in cases
    ]
    replay = split_answers(general)[0] if replayed else []
    return write_snapshot(Curation(rows, []), work / "snapshots", replay)


def train_arm(name: str, base: str, snapshot: Snapshot, work: Path, threads: int) -> Path:
    """Return the adapter that learnt the snapshot; trained unless it lies there."""
    if done := sorted((work / name).glob("a-*")):
        return done[0]
    recipe = Recipe.model_validate({"threads": threads, "sft": ARMS[name][1]})
    began = time.monotonic()
    folder = train_adapter(snapshot.folder, base, None, work / name, recipe, print)
    print(f"{name}: {folder.name}, {time.monotonic() - began:.0f} s")
    return folder


def judge_arm(
    base: str,
    adapter: Path,
    current: Path,
    snapshot: Snapshot,
    general: Sequence[Record],
    out: Path,
) -> Report:
    """Return the gate's report on an adapter against the base itself; made unless it lies there."""
    if (out / "report.json").exists():
        report = Report.read(out)
        return replace(report, verdict=judge(report))
    settings = EvaluationSettings(max_tokens=64)
    return compare_adapters(
        adapter, current, base, None, snapshot.folder, [], out, settings, general=general
    )


def table_of_measures(reports: dict[str, Report]) -> Table:
    """Return what each measure says of each adapter: the mean difference and the p of its test."""
    table = Table("suite", "measure", *reports)
    for suite in ("repairs", "forms", "held_out"):
        for name in MEASURES:
            cells = []
            for report in reports.values():
                values = mean_differences_by_question(name, report.suites[suite])
                p = signed_rank_test(values)
                mean = fmean(values) if values else 0
                cells.append(f"{mean:+.2f} ({'<.001' if p < 0.001 else f'{p:.2g}'})")
            table.add_row(suite, name, *cells)
    return table


def table_of_harm(reports: dict[str, Report]) -> Table:
    """Return what the refusing rules see of each adapter, and the verdict."""
    table = Table("", *reports)
    rows: dict[str, Callable[[Report], str]] = {
        "general prompts: KL": lambda r: f"{fmean(d.candidate for d in r.general):.3f}",
        "general answers other than the base's": lambda r: (
            f"{count_changed_answers(r.general_answers)}/{len(r.general_answers)}"
        ),
        "right general answers kept": lambda r: (
            f"{known_answers(r.general_answers).kept}/{known_answers(r.general_answers).base}"
        ),
        "order of letters, taught (asked)": lambda r: order(r, "letters"),
        "order of words, taught (asked)": lambda r: order(r, "words"),
        "verdict": lambda r: r.verdict.kind if r.verdict else "",
        "why": lambda r: r.verdict.reasons[0] if r.verdict else "",
        "seconds": lambda r: f"{r.seconds:.0f}",
    }
    for title, show in rows.items():
        table.add_row(title, *(show(report) for report in reports.values()))
    return table


def order(report: Report, unit: str) -> str:
    """Return how much likelier the base finds texts in their order, nats a character."""
    found = report.orderliness
    assert found
    return f"{fmean(getattr(found, unit)):+.2f} ({fmean(getattr(found, f'asked_{unit}')):+.2f})"


def main() -> None:
    """Train and judge what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", help="SmolLM2-135M-Instruct unless named")
    parser.add_argument("--adapters", type=Path, default=Path(gettempdir()) / "talkback-judging")
    parser.add_argument("--only", nargs="+", default=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder, name = options.adapters, options.base or str(find_real_model())
    base = load_base(name)
    general = read_rows(answer_general_prompts(base, "", folder / "general", print))
    current = write_untrained(base, folder / "untrained")
    taught, held_out = (
        with_base_answers(base, cases, current) for cases in draw_questions(options.seed)
    )
    snapshots, reports = {}, {}
    for arm in ARMS:
        snapshots[arm] = write_arm(arm, (taught, held_out), general, folder)
    for arm in options.only:
        adapter = train_arm(arm, name, snapshots[arm], folder, options.threads)
        for teacher in dict.fromkeys((arm, "good")):
            title = arm if teacher == arm else f"{arm}, by right answers"
            out = folder / "reports" / f"{arm}-by-{teacher}"
            reports[title] = judge_arm(name, adapter, current, snapshots[teacher], general, out)
    console = Console(width=160)
    console.print(table_of_measures(reports))
    console.print(table_of_harm(reports))


if __name__ == "__main__":
    main()
