"""Decides whether a candidate may replace the adapter in service, and why.

Both adapters answered the same questions, so every test is paired. "Targets" are the corrected
questions, trained (repairs) and held out. The rules, in their order; the first five refuse:

1. Data leakage. A held-out question has trained: the report cannot be believed.
2. Collapse. One answer stands where the adapter in service gave many: at least `collapse_count`
   different answers and `collapse_share` of all those of the suite became one. An answer that was
   already given to several questions (an honest "I don't know") may grow to twice as many.
3. Catastrophic forgetting. On the retention questions the share of right answers fell by more
   than `margin`, and McNemar's exact test says that chance alone is an unlikely cause (p <=
   `alpha`); or perplexity on their answers rose by more than `perplexity` as a factor, with the
   whole one-sided interval of the paired mean above it. Or, on general prompts, the probabilities
   lie more than `divergence` from the base's, with the whole one-sided interval of the mean.
4. Overfitting. Perplexity on the held-out corrections rose by that much, the same way.
5. Preferences. McNemar's exact test finds fewer held-out choices preferred as people did.

Then the evidence. A target is won when only the candidate's answer is exactly right, lost when
only the current one's is.

6. Fewer than `min_evidence` won and lost targets: not enough evidence. (Five: even a clean sweep of
   four has p = 1/16.)
7. Wins no more than losses: refused. More, but the exact sign test has p > `alpha`: not enough
   evidence.
8. Too small a retention suite: when the interval of the fall (Agresti and Min 2005) reaches past
   `blind`, or that of the divergence past `divergence`, harm cannot be ruled out: not enough
   evidence. With neither retention questions nor general prompts the verdict says that forgetting
   was not looked for; `need_retention` makes that a refusal to judge.
9. Otherwise the candidate is promoted.

Underfitting (less than half of the trained corrections answered right) is named beside any
verdict: the candidate may still be better than what is in service. No correction for several
tests: each of 2 to 5 can only refuse, so the chance to promote wrongly stays at most `alpha`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import Field

from evaluation import metrics
from evaluation.report import Comparison, Report, Verdict, is_loss, is_win
from feedback.settings import Settings


class GateSettings(Settings):
    """Holds ``[gate]`` of talkback.toml."""

    table: ClassVar[str] = "gate"

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Highest probability of a wrong promotion, in every one-sided test."""
    min_evidence: int = Field(default=5, ge=1)
    """Fewest targets on which the two adapters must differ."""
    margin: float = Field(default=0.02, ge=0, lt=1)
    """How far the share of right retention answers may fall."""
    blind: float = Field(default=0.1, gt=0, le=1)
    """The fall that the retention suite must be able to rule out."""
    divergence: float = Field(default=0.1, gt=0)
    """How far the probabilities may lie from the base's on general prompts: nats a token (KL)."""
    need_retention: bool = False
    """Whether an adapter can be judged at all where nothing shows what it has forgotten."""
    perplexity: float = Field(default=1.25, gt=1)
    """The factor by which perplexity may rise on retention and held-out answers."""
    collapse_count: int = Field(default=5, ge=2)
    """So many different answers must have become one to speak of a collapse."""
    collapse_share: float = Field(default=0.3, gt=0, le=1)
    """And this share of all different answers of the suite."""


def judge(report: Report, settings: GateSettings | None = None) -> Verdict:
    """Return the verdict with all its reasons, the deciding ones first."""
    gate = settings or GateSettings()
    harm = [
        *_leakage_reasons(report),
        *_collapse_reasons(report, gate),
        *_forgetting_reasons(report, gate),
        *_divergence_reasons(report, gate),
        *_overfitting_reasons(report, gate),
        *_preference_reasons(report, gate),
    ]
    remarks = [*_underfitting_remarks(report), *_retention_summary(report, gate)]
    if harm:
        return Verdict("refuse", [*harm, *remarks])
    verdict = _weigh_evidence(report, gate)
    return Verdict(verdict.kind, [*verdict.reasons, *remarks])


# -- What refuses


def _leakage_reasons(report: Report) -> Iterator[str]:
    if report.leaks:
        yield (
            f"Data leakage: {_count(len(report.leaks), 'held-out question')} trained as well, "
            f"{_quote(report.leaks[0])} among them. Nothing measured on them can be believed."
        )


def _collapse_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    for name, comparisons in (("corrected", _targets(report)), ("retention", _retention(report))):
        now, before = (
            [i.candidate.answer for i in comparisons],
            [i.current.answer for i in comparisons],
        )
        worst = metrics.find_collapse(now, before)
        if (
            worst
            and worst.distinct_before >= gate.collapse_count
            and worst.share >= gate.collapse_share
        ):
            yield (
                f"Collapse: {worst.questions} of {len(comparisons)} {name} questions now get one "
                f"and the same answer, {_quote(worst.answer)}; the adapter in service gave them "
                f"{worst.distinct_before} different ones."
            )


def _forgetting_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    comparisons = _retention(report)
    better, worse = _count_changes(comparisons)
    drop = _accuracy_drop(comparisons, gate)
    p = metrics.sign_test(worse, better)
    if drop.value > gate.margin and p <= gate.alpha:
        yield (
            f"Catastrophic forgetting: of {len(comparisons)} retention questions {worse} that were "
            f"answered right are now wrong and {better} the other way round, a fall of "
            f"{drop.value:.1%} where {gate.margin:.0%} is allowed (p = {p:.2g})."
        )
    if rise := _perplexity_rise(comparisons, gate):
        yield (
            f"Catastrophic forgetting: perplexity on the answers of {len(comparisons)} retention "
            f"questions rose by a factor of {rise:.2f}; {gate.perplexity:g} is allowed."
        )


def _divergence_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    found = _divergence(report, gate)
    if report.general and found.low > gate.divergence:
        farthest = max(report.general, key=lambda each: each.candidate)
        yield (
            f"Catastrophic forgetting: on {len(report.general)} general prompts its probabilities "
            f"lie {found.value:.3f} nats a token from the base's; {gate.divergence:g} is allowed. "
            f"Farthest at {_quote(farthest.question)}."
        )


def _overfitting_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    comparisons = report.suites["held_out"]
    if rise := _perplexity_rise(comparisons, gate):
        yield (
            f"Overfitting: perplexity on {len(comparisons)} corrections that did not train rose by "
            f"a factor of {rise:.2f}; {gate.perplexity:g} is allowed."
        )


def _preference_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    better = sum(pair.candidate > 0 >= pair.current for pair in report.pairs)
    worse = sum(pair.current > 0 >= pair.candidate for pair in report.pairs)
    p = metrics.sign_test(worse, better)
    if p <= gate.alpha:
        yield (
            f"Preferences got worse: of {len(report.pairs)} held-out choices {worse} are no longer "
            f"preferred as people did and {better} newly are (p = {p:.2g})."
        )


def _perplexity_rise(comparisons: Sequence[Comparison], gate: GateSettings) -> float | None:
    """Return the factor by which perplexity rose, where the interval is above what is allowed.

    Infinite where a loss is not finite; None where the rise is allowed or may be chance.
    """
    rises = [comparison.candidate.loss - comparison.current.loss for comparison in comparisons]
    if not all(math.isfinite(rise) for rise in rises):
        return math.inf
    rise = metrics.mean_interval(rises, gate.alpha)
    return math.exp(min(rise.value, 50)) if rise.low > math.log(gate.perplexity) else None


# -- The evidence


def _weigh_evidence(report: Report, gate: GateSettings) -> Verdict:
    comparisons = _targets(report)
    wins, losses = _count_changes(comparisons)
    p = metrics.sign_test(wins, losses)
    found = (
        f"of {_count(len(comparisons), 'corrected question')} the candidate alone is right on "
        f"{wins} and the adapter in service alone on {losses}"
    )
    if wins + losses < gate.min_evidence:
        needed = f"they must differ on {gate.min_evidence} at least"
        return Verdict("not_enough_evidence", [f"Too few differences: {found}; {needed}."])
    if wins <= losses:
        return Verdict("refuse", [f"Not better: {found}."])
    if p > gate.alpha:
        return Verdict("not_enough_evidence", [f"It may be chance: {found} (p = {p:.2g})."])
    if blind := _undetectable_forgetting(report, gate):
        return Verdict("not_enough_evidence", [blind])
    return Verdict("promote", [f"Better: {found} (p = {p:.2g})."])


def _undetectable_forgetting(report: Report, gate: GateSettings) -> str | None:
    if not _looks_for_forgetting(report):
        return f"{_NO_RETENTION} [gate] need_retention is on." if gate.need_retention else None
    if comparisons := _retention(report):
        drop = _accuracy_drop(comparisons, gate)
        if drop.high > gate.blind:
            return (
                f"Forgetting cannot be ruled out: {_count(len(comparisons), 'retention question')} "
                f"leave room for a fall of up to {drop.high:.1%}; {gate.blind:.0%} must be ruled "
                "out. Add some."
            )
    if report.general and (high := _divergence(report, gate).high) > gate.divergence:
        return (
            f"Forgetting cannot be ruled out: {_count(len(report.general), 'general prompt')} "
            f"leave room for {high:.3f} nats a token from the base; {gate.divergence:g} is allowed."
        )
    return None


# -- Remarks beside the verdict


def _underfitting_remarks(report: Report) -> Iterator[str]:
    comparisons = report.suites["repairs"]
    right = sum(comparison.candidate.right for comparison in comparisons)
    if comparisons and right < len(comparisons) / 2:
        yield (
            f"Underfitting: only {right} of {_count(len(comparisons), 'trained correction')} is "
            "answered right. More epochs or a higher learning_rate in [training.sft] may help."
        )


_NO_RETENTION = "Forgetting was not looked for: there are no retention questions."


def _looks_for_forgetting(report: Report) -> bool:
    return bool(_retention(report) or report.general)


def _retention_summary(report: Report, gate: GateSettings) -> Iterator[str]:
    if not _looks_for_forgetting(report):
        yield _NO_RETENTION
    if report.general:
        found = _divergence(report, gate)
        served = metrics.mean_interval([each.current for each in report.general]).value
        left_out = f" {report.taught} like what was taught are left out." if report.taught else ""
        yield (
            f"General prompts: on {len(report.general)} its probabilities lie {found.value:.3f} "
            f"nats a token from the base's, at most {found.high:.3f} at {1 - gate.alpha:.0%} "
            f"confidence; those of the adapter in service {served:.3f}.{left_out}"
        )
    comparisons = _retention(report)
    if not comparisons:
        return
    before = sum(comparison.current.right for comparison in comparisons)
    now = sum(comparison.candidate.right for comparison in comparisons)
    drop = _accuracy_drop(comparisons, gate)
    yield (
        f"Retention: {before} of {len(comparisons)} right before, {now} now; "
        f"{_describe_drop(drop.value)}; "
        f"a fall beyond {max(drop.high, 0):.1%} is ruled out at {1 - gate.alpha:.0%} confidence."
    )
    if held := report.suites["held_out"]:
        right = sum(comparison.candidate.right for comparison in held)
        yield f"Held out: {right} of {_count(len(held), 'correction')} that did not train is right."


def _describe_drop(fall: float) -> str:
    return f"a rise of {-fall:.1%}" if fall < 0 else f"a fall of {fall:.1%}"


def _count_changes(comparisons: Sequence[Comparison]) -> tuple[int, int]:
    """Count (wins, losses): questions that only the candidate, or only the current one, got."""
    return sum(map(is_win, comparisons)), sum(map(is_loss, comparisons))


def _accuracy_drop(comparisons: Sequence[Comparison], gate: GateSettings) -> metrics.Interval:
    wins, losses = _count_changes(comparisons)
    return metrics.accuracy_drop(losses, wins, len(comparisons), gate.alpha)


def _divergence(report: Report, gate: GateSettings) -> metrics.Interval:
    """Return how far the candidate lies from the base on general prompts, nats a token."""
    found = [each.candidate for each in report.general]
    if not all(map(math.isfinite, found)):
        return metrics.Interval(math.inf, math.inf, math.inf)
    return metrics.mean_interval(found, gate.alpha)


def _targets(report: Report) -> list[Comparison]:
    return [*report.suites["repairs"], *report.suites["held_out"]]


def _retention(report: Report) -> list[Comparison]:
    return report.suites["retention"]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _quote(text: str, max_chars: int = 80) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= max_chars else line[: max_chars - 1] + '…'}”"
