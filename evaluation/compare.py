"""Compares a candidate with the adapter in service, over the suites of a snapshot.

    python -m evaluation.compare --candidate adapters/a-… --current adapters/a-… \\
        --snapshot snapshots/s-… --retention retention.jsonl --out reports/r-…

Both adapters answer greedily through the engine that serves, so what is judged is what people
would get. The last line it prints is JSON.
"""

import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, ClassVar

import torch
import typer
from pydantic import Field

from chatbot.engine.default_sampling import thinking_budget
from chatbot.general.answers import MAX_TOKENS, read_accepted
from chatbot.general.split import partition_taught, split_answers
from chatbot.model.adapter import AdapterError, verify_adapter
from chatbot.model.base import STARTER, Base, load_base
from chatbot.model.untrained import write_untrained
from evaluation import metrics, suites
from evaluation.comparison import (
    Comparison,
    Divergence,
    GeneralAnswer,
    PreferenceMargin,
    ScoredAnswer,
)
from evaluation.gate import GateSettings, judge
from evaluation.orderliness import measure_orderliness
from evaluation.report import Report
from evaluation.suites import AnswerScorer, Case, PreferencePair
from feedback.curation.row_files import read_dialogues, read_rows
from feedback.errors import TalkbackError, describe_os_error
from feedback.settings import Home, Settings
from feedback.snapshot import Record, Snapshot


class EvaluationSettings(Settings):
    """Holds ``[evaluation]`` of talkback.toml."""

    table: ClassVar[str] = "evaluation"

    max_tokens: int | None = Field(default=None, ge=1)
    """An answer is cut after so many tokens. Not set: 256, or what the longest expected one has."""
    retention: int = Field(default=400, ge=0)
    """Most retention questions that are put; more are drawn from, always the same."""
    forms: int = Field(default=40, ge=0)
    """Most other forms of trained questions that are put."""
    threads: int = Field(default=0, ge=0)
    """Threads of the arithmetic; 0 leaves it to OMP_NUM_THREADS, which the cycle sets."""


def compare_adapters(
    candidate: Path,
    current: Path,
    base_name: str,
    revision: str | None,
    snapshot: Path,
    retention: Sequence[Record],
    out: Path,
    settings: EvaluationSettings | None = None,
    gate: GateSettings | None = None,
    *,
    general: Sequence[Record] = (),
    thinking: int = 0,
) -> Report:
    """Compare, judge, write the report into `out`, and return it.

    `base_name` is a folder or a Hub id, `revision` a commit of the Hub; `general` are all of the
    base's answers to the general prompts; `thinking` is the most tokens of a thought before an
    answer, 0: none. Raises TalkbackError.
    """
    settings = settings or EvaluationSettings()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    base, rows = load_base(base_name, revision), Snapshot.read(snapshot)
    with readable_adapter(current, base) as (opponent, notes):
        report = measure(
            base, candidate, opponent, rows, retention, settings, general=general, thinking=thinking
        )
    verdict = judge(report, gate)
    report = replace(report, verdict=replace(verdict, reasons=[*verdict.reasons, *notes]))
    report.write(out)
    return report


@contextmanager
def readable_adapter(folder: Path, base: Base) -> Iterator[tuple[Path, list[str]]]:
    """Yield the adapter's folder, or the untrained adapter's, which is the base itself, and why.

    The adapter in service may be unreadable; then the base speaks, and the next adapter heals it.
    """
    try:
        verify_adapter(folder, base)
    except AdapterError as error:
        with TemporaryDirectory() as scratch:
            note = f"It was compared with the base itself: {error}"
            print(note, flush=True)
            yield write_untrained(base, Path(scratch)), [note]
    else:
        yield folder, []


def measure(
    base: Base,
    candidate: Path,
    current: Path,
    snapshot: Snapshot,
    retention: Sequence[Record],
    settings: EvaluationSettings,
    *,
    general: Sequence[Record] = (),
    thinking: int = 0,
) -> Report:
    """Put every question to both adapters; return a report without verdict."""
    thinking = thinking_budget(base, thinking)
    started = time.monotonic()
    adapters = [verify_adapter(folder, base) for folder in (candidate, current)]
    new, old = (adapter.id for adapter in adapters)
    folders = {adapter.id: adapter.folder for adapter in adapters}
    cases = build_suites(snapshot, retention, settings)
    forms = cases["forms"]
    every_case = [case for suite in cases.values() for case in suite]
    whole = every_case[: len(every_case) - len(forms)]
    untaught, taught = untaught_prompts(snapshot, general)
    limit = settings.max_tokens or suites.answer_limit(base, whole)
    answers = suites.generate_answers(base, folders, whole, limit, thinking)
    if forms:  # of these no more is needed than shows the expected answer
        limit = min(limit, suites.answer_limit(base, forms, least=1))
        more = suites.generate_answers(base, folders, forms, limit, thinking)
        answers = {name: answers[name] + more[name] for name in folders}
    scorer = AnswerScorer(base, folders, thinking=thinking > 0)
    try:
        scored = {n: score_answers(scorer, n, every_case, answers[n]) for n in folders}
        margins = measure_preferences(
            scorer, new, old, suites.parse_pairs(snapshot.rows("held_out_pairs"))
        )
        divergences = measure_divergences(scorer, new, old, untaught)
        compared = pair_answers(cases, scored[new], scored[old])
        order = measure_orderliness(scorer, [*compared["repairs"], *compared["held_out"]])
    finally:
        scorer.close()
    asked = [new] if all(each.current == 0 for each in divergences) else [new, old]
    general_answers = ask_general_prompts(
        base, {name: folders[name] for name in asked}, new, old, untaught
    )
    return Report(
        candidate=new,
        current=old,
        base=base.name,
        snapshot=snapshot.id,
        suites=compared,
        pairs=margins,
        general=divergences,
        general_answers=general_answers,
        orderliness=order,
        taught=taught,
        leaks=suites.find_leaks(snapshot),
        seconds=round(time.monotonic() - started, 1),
    )


def build_suites(
    snapshot: Snapshot, retention: Sequence[Record], settings: EvaluationSettings
) -> dict[str, list[Case]]:
    """Return the suites by name; retention without what trained, and a random sample of it."""
    trained = suites.parse_cases(snapshot.rows("sft"))
    kept = suites.exclude_trained(suites.parse_cases(retention), trained)
    if len(kept) > settings.retention:
        kept = random.Random(0).sample(kept, settings.retention)
    repairs = suites.parse_cases(snapshot.rows("repairs"))
    return {
        "repairs": repairs,
        "held_out": suites.parse_cases(snapshot.rows("held_out")),
        "retention": kept,
        "forms": suites.other_forms(repairs, trained, settings.forms),
    }


def untaught_prompts(snapshot: Snapshot, general: Sequence[Record]) -> tuple[list[Case], int]:
    """Return the general prompts that show what was forgotten, with the base's answers, and how
    many more there are that people have taught something like."""
    rows = (row for name in ("repairs", "held_out", "dpo") for row in snapshot.rows(name))
    questions = [row["prompt"][-1]["content"] for row in rows]
    kept, taught = partition_taught(split_answers(general)[1], questions)
    return suites.parse_cases(kept), len(taught)


def pair_answers(
    cases: Mapping[str, Sequence[Case]], new: Iterable[ScoredAnswer], old: Iterable[ScoredAnswer]
) -> dict[str, list[Comparison]]:
    """Pair both adapters' answers to all cases of all suites, given in that order."""
    both = zip(new, old, strict=True)
    return {
        name: [
            Comparison(
                case.question, case.expected, case.rejected, *next(both), form_of=case.form_of
            )
            for case in suite
        ]
        for name, suite in cases.items()
    }


def ask_general_prompts(
    base: Base, folders: Mapping[str, Path], candidate: str, current: str, cases: Sequence[Case]
) -> list[GeneralAnswer]:
    """Put the general prompts to the adapters in ``folders``; their answers are cut where the
    base's were. An adapter that is not among them is the base itself, whose answers are there."""
    if not cases:
        return []
    of_base = [case.expected for case in cases]
    found = suites.generate_answers(base, folders, cases, MAX_TOKENS)
    before = found.get(current, of_base)
    accepted = read_accepted()
    return [
        GeneralAnswer(case.question, accepted.get(case.question, []), *answers)
        for case, *answers in zip(cases, of_base, found[candidate], before, strict=True)
    ]


def score_answers(
    scorer: AnswerScorer, adapter: str, cases: Sequence[Case], answers: Sequence[str]
) -> list[ScoredAnswer]:
    """Score one adapter's answers, given in the order of the cases."""
    expected = scorer.answer_logprobs(
        adapter, [(case.prompt, case.thought, case.expected) for case in cases]
    )
    corrected = [i for i, case in enumerate(cases) if (case.rejected or "").strip()]
    rejected = scorer.answer_logprobs(
        adapter, [(cases[i].prompt, cases[i].thought, cases[i].rejected or "") for i in corrected]
    )
    rejected_losses = {
        i: -total / tokens for i, (total, tokens) in zip(corrected, rejected, strict=True)
    }
    found = []
    for i, (case, answer, (total, tokens)) in enumerate(zip(cases, answers, expected, strict=True)):
        loss = -total / tokens
        found.append(
            ScoredAnswer(
                answer=answer,
                right=metrics.exact_match(answer, case.expected),
                chrf=round(metrics.chrf(answer, case.expected), 1),
                loss=loss,
                margin=rejected_losses[i] - loss if i in rejected_losses else None,
            )
        )
    return found


def measure_preferences(
    scorer: AnswerScorer, candidate: str, current: str, pairs: Sequence[PreferencePair]
) -> list[PreferenceMargin]:
    """Measure by how many nats each adapter prefers the chosen answers of held-out pairs."""
    margins = {}
    for name in (candidate, current):
        chosen, rejected = (
            scorer.answer_logprobs(
                name, [(pair.prompt, pair.thought, getattr(pair, side)) for pair in pairs]
            )
            for side in ("chosen", "rejected")
        )
        margins[name] = [a - b for (a, _), (b, _) in zip(chosen, rejected, strict=True)]
    questions = [pair.prompt[-1]["content"] for pair in pairs]
    rows = zip(questions, margins[candidate], margins[current], strict=True)
    return [PreferenceMargin(*row) for row in rows]


def measure_divergences(
    scorer: AnswerScorer, candidate: str, current: str, cases: Sequence[Case]
) -> list[Divergence]:
    """Measure how far both adapters lie from the base on general prompts."""
    found = scorer.divergences([candidate, current], cases)
    questions = [case.question for case in cases]
    rows = zip(questions, found[candidate], found[current], strict=True)
    return [Divergence(*row) for row in rows]


def main(
    candidate: Annotated[Path, typer.Option(help="The new adapter's folder.")],
    current: Annotated[Path, typer.Option(help="The folder of the adapter in service.")],
    snapshot: Annotated[Path, typer.Option(help="The snapshot the candidate learnt from.")],
    out: Annotated[Path, typer.Option(help="The report's folder.")],
    retention: Annotated[Path | None, typer.Option(help="Rows to stay right, JSON lines.")] = None,
    general: Annotated[
        Path | None, typer.Option(help="The base's answers to the general prompts.")
    ] = None,
    base_model: Annotated[str, typer.Option(help="A folder or a Hub id.")] = STARTER,
    revision: Annotated[str | None, typer.Option(help="The base's commit, to pin it.")] = None,
    thinking: Annotated[int, typer.Option(help="Most tokens of a thought; 0: none.")] = 0,
    home: Annotated[
        Path | None,
        typer.Option(envvar="TALKBACK_HOME", help="Its talkback.toml has the settings."),
    ] = None,
) -> None:
    """Compare and judge; the last line on stdout is JSON: {"report", "verdict", "reasons"}."""
    try:
        settings_home = Home.find(home)
        settings = EvaluationSettings.read(settings_home)
        gate = GateSettings.read(settings_home)
        rows = read_dialogues(retention) if retention else []
        report = compare_adapters(
            candidate,
            current,
            base_model,
            revision,
            snapshot,
            rows,
            out,
            settings,
            gate,
            general=read_rows(general) if general else [],
            thinking=thinking,
        )
    except TalkbackError as error:
        sys.exit(f"evaluation: {error}")
    except OSError as error:
        sys.exit(f"evaluation: {describe_os_error(error)}")
    assert report.verdict
    last = {"report": str(out), "verdict": report.verdict.kind, "reasons": report.verdict.reasons}
    print(json.dumps(last))


if __name__ == "__main__":
    typer.run(main)
