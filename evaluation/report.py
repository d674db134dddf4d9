"""What both adapters said, and the verdict on it: a folder of report.json and report.md."""

import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from evaluation import metrics
from feedback.errors import TalkbackError
from feedback.publish import replace_file

FORMAT = 1
VerdictKind = Literal["promote", "refuse", "not_enough_evidence"]
SUITE_TITLES = {
    "repairs": "Corrected questions that were trained",
    "held_out": "Corrected questions that never train",
    "retention": "What the base could do before",
}


class ReportError(TalkbackError):
    """A report that cannot be read; names the file and the remedy."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says, with its reasons in plain words."""

    kind: VerdictKind
    reasons: list[str]


@dataclass(frozen=True)
class ScoredAnswer:
    """One adapter's answer to one question; `loss` is nats per token of the expected answer."""

    answer: str
    right: bool
    chrf: float
    loss: float


@dataclass(frozen=True)
class Comparison:
    """One question, put to both adapters; `rejected` is the answer that was corrected."""

    question: str
    expected: str
    rejected: str | None
    candidate: ScoredAnswer
    current: ScoredAnswer


@dataclass(frozen=True)
class PreferenceMargin:
    """One held-out choice: by how many nats each adapter prefers what people preferred."""

    question: str
    candidate: float
    current: float


@dataclass(frozen=True)
class Report:
    """A comparison of two adapters over the suites; `leaks` are held-out questions that trained."""

    candidate: str
    current: str
    base: str
    snapshot: str
    suites: dict[str, list[Comparison]]
    pairs: list[PreferenceMargin] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    verdict: Verdict | None = None

    def write(self, out: Path) -> Path:
        """Write report.json and report.md into `out`, each whole or not at all."""
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / "report.md", render_markdown(self))
        text = json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1)
        replace_file(out / "report.json", text + "\n")
        return out

    @classmethod
    def read(cls, folder: Path) -> "Report":
        """The report in a folder; raises ReportError when there is none of this format."""
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
        name: [_parse_comparison(item) for item in items]
        for name, items in data.pop("suites").items()
    }
    pairs = [PreferenceMargin(**pair) for pair in data.pop("pairs")]
    verdict = data.pop("verdict")
    return Report(
        suites=suites, pairs=pairs, verdict=Verdict(**verdict) if verdict else None, **data
    )


def _parse_comparison(data: dict[str, Any]) -> Comparison:
    candidate, current = ScoredAnswer(**data.pop("candidate")), ScoredAnswer(**data.pop("current"))
    return Comparison(candidate=candidate, current=current, **data)


# -- For people


def render_markdown(report: Report) -> str:
    """The report as a page: verdict, numbers, and the questions behind them."""
    return "\n".join(
        [
            f"# {report.candidate} against {report.current}",
            "",
            f"Base {report.base}, snapshot {report.snapshot}, {report.seconds:.0f} s.",
            *_verdict_lines(report.verdict),
            *_summary_lines(report),
            *_comparison_lines("Corrected answers, before and now", report.suites["repairs"]),
            *_comparison_lines("Held-out questions", report.suites["held_out"]),
            *_comparison_lines("Forgotten", [i for i in report.suites["retention"] if is_loss(i)]),
            "",
        ]
    )


def is_loss(item: Comparison) -> bool:
    """Right before and wrong now."""
    return item.current.right and not item.candidate.right


def is_win(item: Comparison) -> bool:
    """Wrong before and right now."""
    return item.candidate.right and not item.current.right


def _verdict_lines(verdict: Verdict | None) -> Iterator[str]:
    if verdict:
        yield from ("", f"**Verdict: {verdict.kind.replace('_', ' ')}**", "")
        yield from (f"- {reason}" for reason in verdict.reasons)


def _summary_lines(report: Report) -> Iterator[str]:
    yield from ("", "## Numbers", "")
    yield "| suite | questions | right before | right now | won | lost | chrF | loss before | now |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, title in SUITE_TITLES.items():
        if items := report.suites[name]:
            yield _summary_row(title, items)
    if report.pairs:
        before = sum(pair.current > 0 for pair in report.pairs)
        now = sum(pair.candidate > 0 for pair in report.pairs)
        yield f"\nHeld-out choices preferred as people did: {before} before, {now} now, of "
        yield f"{len(report.pairs)}."


def _summary_row(title: str, items: list[Comparison]) -> str:
    before, now = [i.current for i in items], [i.candidate for i in items]
    cells = [
        title,
        str(len(items)),
        f"{metrics.share_of_true(s.right for s in before):.0%}",
        f"{metrics.share_of_true(s.right for s in now):.0%}",
        str(sum(map(is_win, items))),
        str(sum(map(is_loss, items))),
        f"{_mean(s.chrf for s in now):.0f}",
        f"{_mean(s.loss for s in before):.3f}",
        f"{_mean(s.loss for s in now):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _comparison_lines(title: str, items: Iterable[Comparison]) -> Iterator[str]:
    rows = list(items)
    if not rows:
        return
    yield from ("", f"## {title}", "", "| question | expected | before | now | |")
    yield "|---|---|---|---|---|"
    for item in rows:
        texts = (item.question, item.expected, item.current.answer, item.candidate.answer)
        mark = "right" if item.candidate.right else "wrong"
        yield f"| {' | '.join(map(_escape_cell, texts))} | {mark} |"


def _escape_cell(text: str) -> str:
    line = html.escape(" ".join(text.split()), quote=False)
    return line.replace("\\", "\\\\").replace("|", "\\|")


def _mean(values: Iterable[float]) -> float:
    return metrics.mean_interval(list(values)).value
