"""What both adapters said, and the verdict on it: a folder of report.json and report.md."""

import html
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from evaluation import metrics
from feedback.errors import TalkbackError

FORMAT = 1
Kind = Literal["promote", "refuse", "not_enough_evidence"]
SUITES = {
    "repairs": "Corrected questions that were trained",
    "held_out": "Corrected questions that never train",
    "retention": "What the base could do before",
}


class ReportError(TalkbackError):
    """A report that cannot be read; names the file and the remedy."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says, with its reasons in plain words."""

    kind: Kind
    reasons: list[str]


@dataclass(frozen=True)
class Said:
    """One adapter's answer to one question; `loss` is nats per token of the expected answer."""

    answer: str
    right: bool
    chrf: float
    loss: float


@dataclass(frozen=True)
class Item:
    """One question, put to both adapters; `rejected` is the answer that was corrected."""

    question: str
    expected: str
    rejected: str | None
    candidate: Said
    current: Said


@dataclass(frozen=True)
class Pair:
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
    suites: dict[str, list[Item]]
    pairs: list[Pair] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    verdict: Verdict | None = None

    def write(self, out: Path) -> Path:
        """Write report.json and report.md into `out`, each whole or not at all."""
        out.mkdir(parents=True, exist_ok=True)
        _save(out / "report.md", markdown(self))
        text = json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1)
        _save(out / "report.json", text + "\n")
        return out

    @classmethod
    def read(cls, folder: Path) -> "Report":
        """The report in a folder; raises ReportError when there is none of this format."""
        file = folder / "report.json"
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT:
                raise ReportError(f"{file} has another format; compare the adapters again")
            return _report(data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReportError(f"cannot read {file}: {error}; compare them again") from error


def _report(data: dict[str, Any]) -> Report:
    suites = {name: [_item(item) for item in items] for name, items in data.pop("suites").items()}
    pairs = [Pair(**pair) for pair in data.pop("pairs")]
    verdict = data.pop("verdict")
    return Report(
        suites=suites, pairs=pairs, verdict=Verdict(**verdict) if verdict else None, **data
    )


def _item(data: dict[str, Any]) -> Item:
    candidate, current = Said(**data.pop("candidate")), Said(**data.pop("current"))
    return Item(candidate=candidate, current=current, **data)


def _save(file: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=file.parent, prefix=f".{file.name}-", delete=False
    ) as draft:
        draft.write(text)
    Path(draft.name).chmod(0o644)
    Path(draft.name).replace(file)


# -- For people


def markdown(report: Report) -> str:
    """The report as a page: verdict, numbers, and the questions behind them."""
    return "\n".join(
        [
            f"# {report.candidate} against {report.current}",
            "",
            f"Base {report.base}, snapshot {report.snapshot}, {report.seconds:.0f} s.",
            *_verdict(report.verdict),
            *_numbers(report),
            *_table("Corrected answers, before and now", report.suites["repairs"]),
            *_table("Held-out questions", report.suites["held_out"]),
            *_table("Forgotten", [i for i in report.suites["retention"] if lost(i)]),
            "",
        ]
    )


def lost(item: Item) -> bool:
    """Right before and wrong now."""
    return item.current.right and not item.candidate.right


def gained(item: Item) -> bool:
    """Wrong before and right now."""
    return item.candidate.right and not item.current.right


def _verdict(verdict: Verdict | None) -> Iterator[str]:
    if verdict:
        yield from ("", f"**Verdict: {verdict.kind.replace('_', ' ')}**", "")
        yield from (f"- {reason}" for reason in verdict.reasons)


def _numbers(report: Report) -> Iterator[str]:
    yield from ("", "## Numbers", "")
    yield "| suite | questions | right before | right now | won | lost | chrF | loss before | now |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, title in SUITES.items():
        if items := report.suites[name]:
            yield _row(title, items)
    if report.pairs:
        before = sum(pair.current > 0 for pair in report.pairs)
        now = sum(pair.candidate > 0 for pair in report.pairs)
        yield f"\nHeld-out choices preferred as people did: {before} before, {now} now, of "
        yield f"{len(report.pairs)}."


def _row(title: str, items: list[Item]) -> str:
    before, now = [i.current for i in items], [i.candidate for i in items]
    cells = [
        title,
        str(len(items)),
        f"{metrics.share(s.right for s in before):.0%}",
        f"{metrics.share(s.right for s in now):.0%}",
        str(sum(map(gained, items))),
        str(sum(map(lost, items))),
        f"{_mean(s.chrf for s in now):.0f}",
        f"{_mean(s.loss for s in before):.3f}",
        f"{_mean(s.loss for s in now):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _table(title: str, items: Iterable[Item]) -> Iterator[str]:
    rows = list(items)
    if not rows:
        return
    yield from ("", f"## {title}", "", "| question | expected | before | now | |")
    yield "|---|---|---|---|---|"
    for item in rows:
        texts = (item.question, item.expected, item.current.answer, item.candidate.answer)
        mark = "right" if item.candidate.right else "wrong"
        yield f"| {' | '.join(map(_cell, texts))} | {mark} |"


def _cell(text: str) -> str:
    line = html.escape(" ".join(text.split()), quote=False)
    return line.replace("\\", "\\\\").replace("|", "\\|")


def _mean(values: Iterable[float]) -> float:
    return metrics.mean(list(values)).value
