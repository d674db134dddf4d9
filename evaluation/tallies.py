"""Counts and averages what the gate weighs, and words it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation import metrics
from evaluation.comparison import Comparison, Divergence, GeneralAnswer, is_loss, is_win
from evaluation.gate_settings import GateSettings


def count_changes(comparisons: Sequence[Comparison]) -> tuple[int, int]:
    """Count (wins, losses): questions that only the candidate, or only the current one, got."""
    return sum(map(is_win, comparisons)), sum(map(is_loss, comparisons))


def accuracy_drop(comparisons: Sequence[Comparison], gate: GateSettings) -> metrics.Interval:
    """Return the fall of the share of right answers."""
    wins, losses = count_changes(comparisons)
    return metrics.accuracy_drop(losses, wins, len(comparisons), gate.alpha)


def mean_divergence(general: Sequence[Divergence], gate: GateSettings) -> metrics.Interval:
    """Return how far the candidate lies from the base on general prompts, nats a token."""
    found = [each.candidate for each in general]
    if not all(map(math.isfinite, found)):
        return metrics.Interval(math.inf, math.inf, math.inf)
    return metrics.mean_interval(found, gate.alpha)


@dataclass(frozen=True)
class KnownAnswers:
    """Counts general prompts that have a right answer: how many were `asked`, how many the `base`
    answers right, and of those the candidate still (`kept`); `lost` and `gained` are against the
    adapter in service, over all that were asked."""

    asked: int
    base: int
    kept: int
    lost: int
    gained: int

    def drop(self, gate: GateSettings) -> metrics.Interval:
        """Return the fall of the share of right answers against the adapter in service."""
        return metrics.accuracy_drop(self.lost, self.gained, self.asked, gate.alpha)


def known_answers(answers: Sequence[GeneralAnswer]) -> KnownAnswers:
    """Count the right answers to general prompts."""
    asked = [each for each in answers if each.accepted]
    by_base = [each for each in asked if each.is_right(each.base)]
    now = [each.is_right(each.candidate) for each in asked]
    before = [each.is_right(each.current) for each in asked]
    return KnownAnswers(
        asked=len(asked),
        base=len(by_base),
        kept=sum(each.is_right(each.candidate) for each in by_base),
        lost=sum(b and not n for n, b in zip(now, before, strict=True)),
        gained=sum(n and not b for n, b in zip(now, before, strict=True)),
    )


def count_changed_answers(answers: Sequence[GeneralAnswer]) -> int:
    """Count the general prompts that the candidate answers otherwise than the base."""
    return sum(not metrics.exact_match(each.candidate, each.base) for each in answers)


def count(n: int, noun: str) -> str:
    """Return "1 question", or "2 questions"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def quote(text: str, max_chars: int = 80) -> str:
    """Return a text in one line and in quotes, cut where it is long."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= max_chars else line[: max_chars - 1] + '…'}”"
