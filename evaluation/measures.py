"""Defines how two adapters' answers to one corrected question are compared, besides word for word.

Each measure is a paired difference, above 0 where the candidate is nearer to the correction. What
each says of good, poisoned, garbage and over-trained adapters is in docs/judging.md.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from evaluation.comparison import Comparison
from feedback.matching.embedding import load_static_embedder


@dataclass(frozen=True)
class Measure:
    """Holds a measure: `difference` is None where there is nothing to compare."""

    title: str
    difference: Callable[[Comparison], float | None]


def _exact(comparison: Comparison) -> float:
    return float(comparison.candidate.right) - float(comparison.current.right)


def _chrf(comparison: Comparison) -> float:
    return comparison.candidate.chrf - comparison.current.chrf


def _loss(comparison: Comparison) -> float:
    return comparison.current.loss - comparison.candidate.loss


def _margin(comparison: Comparison) -> float | None:
    now, before = comparison.candidate.margin, comparison.current.margin
    return None if now is None or before is None else now - before


def _similarity(comparison: Comparison) -> float | None:
    texts = [comparison.expected, comparison.candidate.answer, comparison.current.answer]
    expected, now, before = load_static_embedder().embed(texts)
    return float(expected @ now - expected @ before) if expected.any() else None


MEASURES = {
    "exact": Measure("answers that are the correction word for word", _exact),
    "chrf": Measure("chrF of the answer, points", _chrf),
    "similarity": Measure("similarity of the answer by its embedding", _similarity),
    "margin": Measure("preference for the correction, nats a token", _margin),
    "loss": Measure("likelihood of the correction, nats a token", _loss),
}
"""All measures by name. One more is a function here."""


def differences(measure: str, comparisons: Iterable[Comparison]) -> list[float]:
    """Return the paired differences of a measure, where there is something to compare."""
    found = map(MEASURES[measure].difference, comparisons)
    return [difference for difference in found if difference is not None]


def mean_differences_by_question(measure: str, comparisons: Sequence[Comparison]) -> list[float]:
    """Return a measure's mean difference over all forms of each taught question: forms of one
    question are no evidence of their own."""
    forms: dict[str, list[float]] = defaultdict(list)
    for comparison in comparisons:
        if (difference := MEASURES[measure].difference(comparison)) is not None:
            forms[comparison.form_of or comparison.question].append(difference)
    return [fmean(found) for found in forms.values()]
