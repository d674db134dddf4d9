"""Computes metrics of answers, and the statistics that say how far to believe them."""

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
    """Return the answer without what exact match shall not depend on.

    That is case, spacing, kinds of quotes and dashes, and a full stop at the end. Digits and signs
    stay: they are facts.
    """
    text = unicodedata.normalize("NFKC", answer).translate(_PUNCTUATION_VARIANTS).casefold()
    return re.sub(r"\s+", " ", text).strip().rstrip(".!").strip()


def exact_match(answer: str, expected: str) -> bool:
    """Tell whether the answer is the expected one after normalising."""
    return normalise_for_exact_match(answer) == normalise_for_exact_match(expected)


def chrf(answer: str, expected: str) -> float:
    """Return the character n-gram F-score of the answer, 0 to 100 (Popović 2015)."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [expected]).score)


def holds_one_of(answer: str, accepted: Iterable[str]) -> bool:
    """Tell whether an accepted text stands in the answer as words or numbers of their own: 12 is
    not in 112, 1.12 or 12.5, and "art" not in "party"."""
    text = normalise_for_exact_match(answer)
    return any(
        re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(sought)}(?!\w)(?![.,]\d)", text)
        for sought in map(normalise_for_exact_match, accepted)
        if sought
    )


# -- Many answers


def share_of_true(right: Iterable[bool]) -> float:
    """Return the share of True, 0 to 1; 0 for no values at all."""
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
    """Find the answer that replaced most different ones; both lists are by question.

    An answer that was given to several questions before (an honest "I don't know") is no
    collapse as long as it is given to at most twice as many as before.
    """
    previous = [normalise_for_exact_match(answer) for answer in before]
    previous_count = Counter(previous)
    questions_of: dict[str, list[int]] = defaultdict(list)
    for question, answer in enumerate(now):
        questions_of[normalise_for_exact_match(answer)].append(question)
    found = []
    for answer, questions in questions_of.items():
        if previous_count[answer] > 1 and len(questions) <= 2 * previous_count[answer]:
            continue
        distinct = len({previous[question] for question in questions})
        share = distinct / max(1, len(previous_count))
        found.append(Collapse(now[questions[0]], len(questions), distinct, share))
    return max(found, key=lambda c: (c.distinct_before, c.questions), default=None)


# -- Statistics of pairs: the same questions, answered by both adapters

MOST_EXACT = 60
"""Differences up to which the signed-rank test counts every way of signs; it takes the cube."""


def sign_test(wins: int, losses: int) -> float:
    """Return the one-sided exact p of at least so many wins if wins and losses were equally likely.

    McNemar's exact test; questions on which both do equally well say nothing and don't count.
    """
    n = wins + losses
    return float(sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n)


def signed_rank_test(differences: Iterable[float]) -> float:
    """Return the one-sided exact p of so large a sum of ranks if each difference were as likely
    to be one of the other sign (Wilcoxon 1945); zeros say nothing and don't count.

    Equal sizes share their mean rank. Of more than `MOST_EXACT` differences it is the normal
    approximation.
    """
    values = [value for value in differences if value]
    sizes = sorted(abs(value) for value in values)
    first_rank = {size: rank for rank, size in reversed([*enumerate(sizes, 1)])}
    count = Counter(sizes)
    # Twice the mean rank of equal sizes is a whole number.
    doubled = {size: 2 * first_rank[size] + count[size] - 1 for size in count}
    found = sum(doubled[abs(value)] for value in values if value > 0)
    ranks = [doubled[size] for size in sizes]
    if len(ranks) > MOST_EXACT:
        spread = math.sqrt(sum(rank * rank for rank in ranks)) / 2
        return 1 - NormalDist().cdf((found - 1 - sum(ranks) / 2) / spread)
    ways = [1] + [0] * sum(ranks)
    for rank in ranks:
        ways = [n + (ways[total - rank] if total >= rank else 0) for total, n in enumerate(ways)]
    return float(sum(ways[found:]) / 2 ** len(ranks))


@dataclass(frozen=True)
class Interval:
    """Holds an estimate with one-sided bounds, each passed with probability alpha at most."""

    value: float
    low: float
    high: float


def accuracy_drop(lost: int, gained: int, n: int, alpha: float = 0.05) -> Interval:
    """Return the fall of the share of right answers, from paired counts (Agresti and Min 2005)."""
    value = (lost - gained) / n if n else 0.0
    lost_, gained_, total = lost + 0.5, gained + 0.5, n + 2
    middle = (lost_ - gained_) / total
    spread = math.sqrt((lost_ + gained_) - (lost_ - gained_) ** 2 / total) / total
    reach = NormalDist().inv_cdf(1 - alpha) * spread
    return Interval(value, max(-1.0, middle - reach), min(1.0, middle + reach))


def mean_interval(values: Sequence[float], alpha: float = 0.05) -> Interval:
    """Return the mean of paired differences; its bounds are infinite below two values."""
    if len(values) < 2:
        return Interval(fmean(values) if values else 0.0, -math.inf, math.inf)
    reach = NormalDist().inv_cdf(1 - alpha) * stdev(values) / math.sqrt(len(values))
    middle = fmean(values)
    return Interval(middle, middle - reach, middle + reach)
