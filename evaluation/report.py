"""Defines the report: both adapters' answers and the verdict, as report.json and report.md."""

import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from evaluation import metrics
from evaluation.comparison import (
    Comparison,
    Divergence,
    GeneralAnswer,
    Orderliness,
    PreferenceMargin,
    ScoredAnswer,
    is_loss,
)
from evaluation.measures import MEASURES, differences
from evaluation.tallies import count_changed_answers, count_changes, known_answers
from feedback.errors import TalkbackError
from feedback.publish import make_folder, replace_file

FORMAT = 1
VerdictKind = Literal["promote", "refuse", "not_enough_evidence"]
SUITE_TITLES = {
    "repairs": "Corrected questions that were trained",
    "forms": "The same in other forms, which were not",
    "held_out": "Corrected questions that never train",
    "retention": "What the base could do before",
}


class ReportError(TalkbackError):
    """Says that a report cannot be read; names the file and the remedy."""


@dataclass(frozen=True)
class Verdict:
    """Holds the gate's decision and its reasons, for people to read."""

    kind: VerdictKind
    reasons: list[str]


@dataclass(frozen=True)
class Report:
    """Holds two adapters' comparisons by suite; `leaks` are held-out questions that trained.

    `general` are the divergences on prompts that nobody has taught and that train nothing, `taught`
    counts those left out because somebody has taught something like them. `general_answers` are
    what was answered to them.
    """

    candidate: str
    current: str
    base: str
    snapshot: str
    suites: dict[str, list[Comparison]]
    pairs: list[PreferenceMargin] = field(default_factory=list)
    general: list[Divergence] = field(default_factory=list)
    general_answers: list[GeneralAnswer] = field(default_factory=list)
    orderliness: Orderliness | None = None
    taught: int = 0
    leaks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    verdict: Verdict | None = None

    @property
    def corrections(self) -> list[Comparison]:
        """Return all corrected questions, trained and held out."""
        return [*self.suites["repairs"], *self.suites["held_out"]]

    def write(self, out: Path) -> Path:
        """Write report.json and report.md into `out`, each whole or not at all; return `out`."""
        make_folder(out)
        replace_file(out / "report.md", render_markdown(self))
        text = json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1)
        replace_file(out / "report.json", text + "\n")
        return out

    @classmethod
    def read(cls, folder: Path) -> "Report":
        """Read the report in a folder; raise ReportError when there is none of this format."""
        file = folder / "report.json"
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT:
                raise ReportError(f"{file} has another format; compare the adapters again")
            return _parse_report(data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReportError(f"cannot read {file}: {error}; compare them again") from error


def _parse_report(data: dict[str, Any]) -> Report:
    suites = {
        name: [_parse_comparison(comparison) for comparison in comparisons]
        for name, comparisons in data.pop("suites").items()
    }
    pairs = [PreferenceMargin(**pair) for pair in data.pop("pairs")]
    general = [Divergence(**divergence) for divergence in data.pop("general", [])]
    answers = [GeneralAnswer(**answer) for answer in data.pop("general_answers", [])]
    orderliness = data.pop("orderliness", None)
    verdict = data.pop("verdict")
    return Report(
        suites=suites,
        pairs=pairs,
        general=general,
        general_answers=answers,
        orderliness=Orderliness(**orderliness) if orderliness else None,
        verdict=Verdict(**verdict) if verdict else None,
        **data,
    )


def _parse_comparison(data: dict[str, Any]) -> Comparison:
    candidate, current = ScoredAnswer(**data.pop("candidate")), ScoredAnswer(**data.pop("current"))
    return Comparison(candidate=candidate, current=current, **data)


# -- For people


def render_markdown(report: Report) -> str:
    """Render the report as Markdown: verdict, numbers, and the questions behind them."""
    return "\n".join(
        [
            f"# {report.candidate} against {report.current}",
            "",
            f"Base {report.base}, snapshot {report.snapshot}, {report.seconds:.0f} s.",
            *_verdict_lines(report.verdict),
            *_summary_lines(report),
            *_comparison_lines("Corrected answers, before and now", report.suites["repairs"]),
            *_comparison_lines("Other forms of them", report.suites.get("forms", [])),
            *_comparison_lines("Held-out questions", report.suites["held_out"]),
            *_comparison_lines("Forgotten", [i for i in report.suites["retention"] if is_loss(i)]),
            *_known_answer_lines(report),
            *_divergence_lines(report.general),
            "",
        ]
    )


def _verdict_lines(verdict: Verdict | None) -> Iterator[str]:
    if verdict:
        yield from ("", f"**Verdict: {verdict.kind.replace('_', ' ')}**", "")
        yield from (f"- {reason}" for reason in verdict.reasons)


def _summary_lines(report: Report) -> Iterator[str]:
    yield from ("", "## Numbers", "")
    yield "| suite | questions | right before | right now | won | lost | chrF | loss before | now |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, title in SUITE_TITLES.items():
        if comparisons := report.suites.get(name):
            yield _summary_row(title, comparisons)
    yield from _measure_lines(report)
    if report.pairs:
        before = sum(pair.current > 0 for pair in report.pairs)
        now = sum(pair.candidate > 0 for pair in report.pairs)
        yield f"\nHeld-out choices preferred as people did: {before} before, {now} now, of "
        yield f"{len(report.pairs)}."


def _measure_lines(report: Report) -> Iterator[str]:
    """Yield how much nearer to the corrections the candidate is, by each measure and suite."""
    corrected = [name for name in SUITE_TITLES if name != "retention" and report.suites.get(name)]
    rows = [
        (name, measure, values)
        for name in corrected
        for measure in MEASURES
        if (values := differences(measure, report.suites[name]))
    ]
    if not rows:
        return
    yield from ("", "## Nearer to the corrections than the adapter in service", "")
    yield "| suite | measure | mean difference | nearer | farther |"
    yield "|---|---|---|---|---|"
    for name, measure, values in rows:
        cells = (
            SUITE_TITLES[name],
            MEASURES[measure].title,
            f"{_mean(values):+.3g}",
            f"{sum(value > 0 for value in values)} of {len(values)}",
            str(sum(value < 0 for value in values)),
        )
        yield f"| {' | '.join(cells)} |"


def _known_answer_lines(report: Report) -> Iterator[str]:
    """Yield what is known of general prompts, and which right answers were lost."""
    if not (answers := report.general_answers):
        return
    known = known_answers(answers)
    yield from ("", "## Answers to general prompts", "")
    yield (
        f"{count_changed_answers(answers)} of {len(answers)} differ from the base's. {known.asked} "
        f"have a right answer: the base gave {known.base}, of which the candidate still gives "
        f"{known.kept}; against the adapter in service it lost {known.lost} and gained "
        f"{known.gained}."
    )
    lost = [a for a in answers if a.is_right(a.current) and not a.is_right(a.candidate)]
    if lost:
        yield from ("", "| prompt | right | before | now |", "|---|---|---|---|")
    for each in lost:
        texts = (each.question, ", ".join(each.accepted), each.current, each.candidate)
        yield f"| {' | '.join(map(_escape_cell, texts))} |"


def _summary_row(title: str, comparisons: list[Comparison]) -> str:
    before, now = [i.current for i in comparisons], [i.candidate for i in comparisons]
    cells = [
        title,
        str(len(comparisons)),
        f"{metrics.share_of_true(s.right for s in before):.0%}",
        f"{metrics.share_of_true(s.right for s in now):.0%}",
        *map(str, count_changes(comparisons)),
        f"{_mean(s.chrf for s in now):.0f}",
        f"{_mean(s.loss for s in before):.3f}",
        f"{_mean(s.loss for s in now):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _comparison_lines(title: str, comparisons: Iterable[Comparison]) -> Iterator[str]:
    rows = list(comparisons)
    if not rows:
        return
    yield from ("", f"## {title}", "", "| question | expected | before | now | |")
    yield "|---|---|---|---|---|"
    for comparison in rows:
        texts = (
            comparison.question,
            comparison.expected,
            comparison.current.answer,
            comparison.candidate.answer,
        )
        mark = "right" if comparison.candidate.right else "wrong"
        yield f"| {' | '.join(map(_escape_cell, texts))} | {mark} |"


def _divergence_lines(general: list[Divergence], shown: int = 10) -> Iterator[str]:
    if not general:
        return
    farthest = sorted(general, key=lambda each: each.candidate, reverse=True)[:shown]
    yield from ("", "## Farthest from the base, of the general prompts", "")
    yield from ("| prompt | nats a token before | now |", "|---|---|---|")
    for each in farthest:
        yield f"| {_escape_cell(each.question)} | {each.current:.3f} | {each.candidate:.3f} |"


def _escape_cell(text: str) -> str:
    line = html.escape(" ".join(text.split()), quote=False)
    return line.replace("\\", "\\\\").replace("|", "\\|")


def _mean(values: Iterable[float]) -> float:
    return metrics.mean_interval(list(values)).value
