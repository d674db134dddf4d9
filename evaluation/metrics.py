"""Numbers that judge answers, and the statistics that say how far to believe them."""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

_PUNCTUATION_VARIANTS = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"}
)
"""Curly quotes and long dashes, which people and editors put in or leave out at will."""


# -- One answer


def normalise_for_exact_match(answer: str) -> str:
    """Case, spacing, kinds of quotes and a full stop at the end aside; digits and signs stay."""
    text = unicodedata.normalize("NFKC", answer).translate(_PUNCTUATION_VARIANTS).casefold()
    return re.sub(r"\s+", " ", text).strip().rstrip(".!").strip()


def exact_match(answer: str, expected: str) -> bool:
    """Whether the answer is the expected one after normalising."""
    return normalise_for_exact_match(answer) == normalise_for_exact_match(expected)


def chrf(answer: str, expected: str) -> float:
    """How near the answer comes, 0 to 100: character n-gram F-score (Popović 2015)."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [expected]).score)


# -- Many answers


def share_of_true(right: Iterable[bool]) -> float:
    """The share of True, 0 for none at all."""
    flags = list(right)
    return sum(flags) / len(flags) if flags else 0.0


@dataclass(frozen=True)
class Collapse:
    """Holds the answer that replaced most others: `questions` many now get `answer`.

    `distinct_before` counts the different answers that those questions got from the adapter in
    service; `share` is that count over all of its different answers.
    """

    answer: str
    questions: int
    distinct_before: int
    share: float


def find_collapse(now: Sequence[str], before: Sequence[str]) -> Collapse | None:
    """The worst case of one answer to questions that used to get many, question by question.

    An answer that was given to several questions before (an honest "I don't know") is no
    collapse as long as it is given to at most twice as many as before.
    """
    old = [normalise_for_exact_match(answer) for answer in before]
    usual = Counter(old)
    places: dict[str, list[int]] = defaultdict(list)
    for place, answer in enumerate(now):
        places[normalise_for_exact_match(answer)].append(place)
    found = [
        Collapse(
            now[at[0]], len(at), (kinds := len({old[i] for i in at})), kinds / max(1, len(usual))
        )
        for answer, at in places.items()
        if not (usual[answer] > 1 and len(at) <= 2 * usual[answer])
    ]
    return max(found, key=lambda c: (c.distinct_before, c.questions), default=None)


# -- Statistics of pairs: the same questions, answered by both adapters


def sign_test(wins: int, losses: int) -> float:
    """One-sided exact p of at least so many wins if wins and losses were equally likely.

    McNemar's exact test; questions on which both do equally well say nothing and don't count.
    """
    n = wins + losses
    return float(sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n)


@dataclass(frozen=True)
class Interval:
    """An estimate with one-sided bounds: each is passed with probability alpha at most."""

    value: float
    low: float
    high: float


def accuracy_drop(lost: int, gained: int, n: int, alpha: float = 0.05) -> Interval:
    """How much the share of right answers fell, from paired counts (Agresti and Min 2005)."""
    value = (lost - gained) / n if n else 0.0
    lost_, gained_, total = lost + 0.5, gained + 0.5, n + 2
    middle = (lost_ - gained_) / total
    spread = math.sqrt((lost_ + gained_) - (lost_ - gained_) ** 2 / total) / total
    reach = NormalDist().inv_cdf(1 - alpha) * spread
    return Interval(value, max(-1.0, middle - reach), min(1.0, middle + reach))


def mean_interval(values: Sequence[float], alpha: float = 0.05) -> Interval:
    """The mean of paired differences; without bounds (infinite ones) below two values."""
    if len(values) < 2:
        return Interval(fmean(values) if values else 0.0, -math.inf, math.inf)
    reach = NormalDist().inv_cdf(1 - alpha) * stdev(values) / math.sqrt(len(values))
    middle = fmean(values)
    return Interval(middle, middle - reach, middle + reach)
