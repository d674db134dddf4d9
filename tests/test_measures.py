"""Compares answers to one correction by each measure."""

import pytest

from evaluation.comparison import Comparison, ScoredAnswer
from evaluation.measures import MEASURES, differences

CORRECTION = "You can return shoes within fourteen days."


def compared(candidate: str, current: str, expected: str = CORRECTION) -> Comparison:
    scored = (ScoredAnswer(text, text == expected, 0.0, 0.0) for text in (candidate, current))
    return Comparison("Can I return my shoes?", expected, None, *scored)


@pytest.mark.parametrize(
    "candidate, current",
    [
        (CORRECTION, "I like the weather today."),
        ("Shoes may be sent back for two weeks.", "I like the weather today."),
        ("Shoes may be sent back for two weeks.", ""),
    ],
)
def test_what_means_the_correction_is_more_similar_than_what_does_not(
    candidate: str, current: str
) -> None:
    nearer = compared(candidate, current)
    assert differences("similarity", [nearer])[0] > 0.1
    assert differences("similarity", [compared(current, candidate)])[0] < -0.1


def test_a_correction_that_the_embedder_knows_nothing_of_is_not_compared_by_it() -> None:
    assert differences("similarity", [compared("นี่", "?", expected="สวัสดีครับ")]) == []


def test_each_measure_says_nothing_of_equal_answers() -> None:
    for name in MEASURES:
        assert not any(differences(name, [compared(CORRECTION, CORRECTION)])), name
