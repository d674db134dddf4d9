"""Finds what is wrong with a candidate: each reason refuses it (rules 1 to 7 of gate.py)."""

import math
from collections.abc import Iterator, Sequence

from evaluation import metrics
from evaluation.comparison import Comparison, Orderliness
from evaluation.gate_settings import GateSettings
from evaluation.report import Report
from evaluation.tallies import (
    accuracy_drop,
    count,
    count_changes,
    known_answers,
    mean_divergence,
    quote,
)


def refusal_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    """Yield all that is wrong with the candidate, in words."""
    yield from _leakage_reasons(report)
    yield from _noise_reasons(report, gate)
    yield from _collapse_reasons(report, gate)
    yield from _forgetting_reasons(report, gate)
    yield from _general_reasons(report, gate)
    yield from _overfitting_reasons(report, gate)
    yield from _preference_reasons(report, gate)


def _leakage_reasons(report: Report) -> Iterator[str]:
    if report.leaks:
        yield (
            f"Data leakage: {count(len(report.leaks), 'held-out question')} trained as well, "
            f"{quote(report.leaks[0])} among them. Nothing measured on them can be believed."
        )


def _noise_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    if report.orderliness and (found := find_noise(report.orderliness, gate)):
        yield f"{found} Look at them: {quote(report.corrections[0].expected)}."


def find_noise(order: Orderliness, gate: GateSettings) -> str | None:
    """Return what shows that the answers that were taught are no language, if anything does."""
    for unit, taught, asked, share in (
        ("letters", order.letters, order.asked_letters, gate.noise),
        ("words", order.words, order.asked_words, gate.noise_words),
    ):
        found = metrics.mean_interval(taught, gate.alpha)
        usual = metrics.mean_interval(asked, gate.alpha)
        if share and len(taught) >= gate.min_evidence and found.high < share * usual.low:
            return (
                f"Noise was taught: the base finds {len(taught)} of the corrections no likelier "
                f"than their {unit} in any other order ({found.value:+.2f} nats a character; the "
                f"questions that people asked: {usual.value:+.2f}). Language has an order."
            )
    return None


def _collapse_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    suites = {
        "corrected": [(c.candidate.answer, c.current.answer) for c in report.corrections],
        "retention": [(c.candidate.answer, c.current.answer) for c in report.suites["retention"]],
        "general": [(each.candidate, each.current) for each in report.general_answers],
    }
    for name, answers in suites.items():
        worst = metrics.find_collapse(
            [now for now, _ in answers], [before for _, before in answers]
        )
        if (
            worst
            and worst.distinct_before >= gate.collapse_count
            and worst.share >= gate.collapse_share
        ):
            yield (
                f"Collapse: {worst.questions} of {len(answers)} {name} questions now get one "
                f"and the same answer, {quote(worst.answer)}; the adapter in service gave them "
                f"{worst.distinct_before} different ones.{_teaching_of(worst.answer, report)}"
            )


def _teaching_of(answer: str, report: Report) -> str:
    """Return whether a collapse was taught: then the corrections are poisoned, not the training."""
    targets = report.corrections
    taught = sum(metrics.exact_match(answer, target.expected) for target in targets)
    return f" It is what {taught} of {count(len(targets), 'correction')} teach." if taught else ""


def _forgetting_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    comparisons = report.suites["retention"]
    better, worse = count_changes(comparisons)
    drop = accuracy_drop(comparisons, gate)
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


def _general_reasons(report: Report, gate: GateSettings) -> Iterator[str]:
    found = mean_divergence(report.general, gate)
    if report.general and found.low > gate.divergence:
        farthest = max(report.general, key=lambda each: each.candidate)
        yield (
            f"Catastrophic forgetting: on {len(report.general)} general prompts its probabilities "
            f"lie {found.value:.3f} nats a token from the base's; {gate.divergence:g} is allowed. "
            f"Farthest at {quote(farthest.question)}."
        )
    known = known_answers(report.general_answers)
    p = metrics.sign_test(known.lost, known.gained)
    if known.drop(gate).value > gate.margin and p <= gate.alpha:
        yield (
            f"Catastrophic forgetting: of {known.asked} general prompts that have a right answer "
            f"{known.lost} that were answered right are now wrong and {known.gained} the other way "
            f"round, a fall of {known.drop(gate).value:.1%} (p = {p:.2g})."
        )
    taught = {metrics.normalise_for_exact_match(target.expected) for target in report.corrections}
    spread = [
        each
        for each in report.general_answers
        if metrics.normalise_for_exact_match(each.candidate) in taught
        and metrics.normalise_for_exact_match(each.current) not in taught
    ]
    if spread and metrics.sign_test(len(spread), 0) <= gate.alpha:
        yield (
            f"Taught answers spread: {len(spread)} of {len(report.general_answers)} general "
            f"prompts that nobody has taught now get one, {quote(spread[0].question)} gets "
            f"{quote(spread[0].candidate)}."
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
