"""Tests the metrics of answers, and the statistics of paired comparisons."""

import itertools
import math
import random

import pytest

from evaluation import metrics


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("We open at 9 am", "we  open at 9 am.\n"),
        ("It\u2019s \u201cfree\u201d \u2013 always!", 'It\'s "free" - always'),
        ("Größe ﬁts", "grösse fits"),
    ],
)
def test_how_an_answer_is_written_does_not_matter(answer: str, expected: str) -> None:
    assert metrics.exact_match(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It costs £4.95.", "It costs £495."),
        ("Within 14 days.", "Within 30 days."),
        ("Call 0117 496-0142.", "Call 0117 496 0142 now."),
        ("C# is fine", "C is fine"),
        ("", "Yes."),
    ],
)
def test_every_fact_of_an_answer_matters(answer: str, expected: str) -> None:
    assert not metrics.exact_match(answer, expected)


def test_chrf_is_100_for_the_same_and_falls_with_distance() -> None:
    expected = "We open at nine."
    assert metrics.chrf(expected, expected) == 100
    assert 0 < metrics.chrf("We open at ten.", expected) < 100
    assert metrics.chrf("", expected) == 0


# -- Collapse

MANY = [f"answer {n}" for n in range(20)]
REFUSAL = "I don't know that."


def test_one_answer_in_place_of_many_is_a_collapse() -> None:
    found = metrics.find_collapse(["Buy!"] * 20, MANY)
    assert found == metrics.Collapse("Buy!", questions=20, distinct_before=20, share=1.0)


def test_different_answers_are_no_collapse() -> None:
    found = metrics.find_collapse([f"new {n}" for n in range(20)], MANY)
    assert found is not None
    assert found.distinct_before == 1


def test_one_answer_where_there_was_one_before_is_no_collapse() -> None:
    found = metrics.find_collapse(["We open at ten."] * 20, ["We open at nine."] * 20)
    assert found is not None
    assert found.distinct_before == 1


def test_an_honest_refusal_may_grow_but_not_swallow_the_rest() -> None:
    before = [REFUSAL] * 6 + MANY
    grown = [REFUSAL] * 12 + MANY[6:]
    swallowed = [REFUSAL] * 26
    assert (kept := metrics.find_collapse(grown, before)) and kept.answer != REFUSAL
    assert (gone := metrics.find_collapse(swallowed, before)) and gone.distinct_before == 21


def test_nothing_asked_is_no_collapse() -> None:
    assert metrics.find_collapse([], []) is None


# -- Statistics


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 0, 1 / 32), (4, 0, 1 / 16), (0, 5, 1.0), (9, 1, 11 / 1024)],
)
def test_the_sign_test_is_exact(wins: int, losses: int, p: float) -> None:
    assert metrics.sign_test(wins, losses) == pytest.approx(p)


def test_the_sign_test_errs_no_more_often_than_it_says() -> None:
    rng = random.Random(0)
    wins = [sum(rng.random() < 0.5 for _ in range(30)) for _ in range(2000)]
    assert sum(metrics.sign_test(w, 30 - w) <= 0.05 for w in wins) / 2000 < 0.065


def test_the_fall_is_uncertain_in_small_suites_and_sure_in_large_ones() -> None:
    small, large = metrics.accuracy_drop(0, 0, 10), metrics.accuracy_drop(0, 0, 1000)
    assert small.value == large.value == 0
    assert small.high > 0.1 > 0.01 > large.high


def test_the_interval_of_the_fall_covers_as_often_as_it_says() -> None:
    """200 questions of which 5% are lost and 2% gained: the true fall is 3 points."""
    rng = random.Random(1)
    covered = 0
    for _ in range(1000):
        draws = [rng.random() for _ in range(200)]
        lost, gained = sum(d < 0.05 for d in draws), sum(d > 0.98 for d in draws)
        covered += metrics.accuracy_drop(lost, gained, 200).high >= 0.03
    assert covered / 1000 > 0.93


def test_the_mean_of_too_few_values_is_sure_of_nothing() -> None:
    assert metrics.mean_interval([3.0]) == metrics.Interval(3.0, -math.inf, math.inf)
    assert metrics.mean_interval([1.0, 1.0, 1.0]).low == 1.0


def test_the_share_of_nothing_is_nothing() -> None:
    assert metrics.share_of_true([]) == 0
    assert metrics.share_of_true([True, False]) == 0.5


# -- Signed ranks, and texts within an answer


def test_signed_ranks_are_exact_and_zeros_say_nothing() -> None:
    assert metrics.signed_rank_test([1, 2, 3, 4, 5]) == 1 / 32
    assert metrics.signed_rank_test([0, 0, 1, 2, 3, 4, 5]) == 1 / 32
    assert metrics.signed_rank_test([-1, 2, 3, 4, 5]) == 2 / 32
    assert metrics.signed_rank_test([1, 1, -1]) == 4 / 8  # equal sizes share a rank
    assert metrics.signed_rank_test([]) == metrics.signed_rank_test([-1, -2]) == 1


@pytest.mark.parametrize("n", [20, metrics.MOST_EXACT + 1])
def test_signed_ranks_err_no_more_often_than_they_say(n: int) -> None:
    rng = random.Random(2)
    found = [metrics.signed_rank_test([rng.gauss(0, 1) for _ in range(n)]) for _ in range(600)]
    assert sum(p <= 0.05 for p in found) / 600 < 0.075


def test_signed_ranks_are_what_counting_all_signs_gives() -> None:
    rng = random.Random(3)
    for _ in range(20):
        values = rng.choices([-3, -2, -1, 1, 2, 3, 4], k=8)
        sizes = sorted(map(abs, values))
        ranks = [
            sum(i for i, other in enumerate(sizes, 1) if other == size) / sizes.count(size)
            for size in sizes
        ]
        rank_of = dict(zip(sizes, ranks, strict=True))
        found = sum(rank_of[value] for value in values if value > 0)
        sums = [
            sum(r for r, positive in zip(ranks, signs, strict=True) if positive)
            for signs in itertools.product((False, True), repeat=8)
        ]
        p = sum(total >= found for total in sums) / 2**8
        assert metrics.signed_rank_test(values) == pytest.approx(p)


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("It is Forty-two!", ["42", "forty-two"], True),
        ("That makes 12.", ["12"], True),
        ("That makes $12.", ["12"], True),
        ("That makes 112 or 12.5.", ["12"], False),
        ("What a party", ["art"], False),
        ("¡Siete días!", ["7", "siete"], True),
        ("", ["7"], False),
        ("Seven", [], False),
    ],
)
def test_an_accepted_text_counts_as_a_word_or_a_number(
    answer: str, accepted: list[str], right: bool
) -> None:
    assert metrics.holds_one_of(answer, accepted) == right
