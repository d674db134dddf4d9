"""Similarity of texts: near-duplicates are found without comparing all pairs."""

import random
from collections.abc import Callable, Mapping

import pytest

from feedback.matching import near_groups
from feedback.matching.near_groups import near_duplicate_groups
from feedback.similarity import near_duplicates, trigram_similarity
from tests.fixtures import public_data
from tests.fixtures.questions import framed_questions, natural_questions


def test_near_duplicates_are_those_that_comparing_all_would_find() -> None:
    sentences = [text for text, refs in public_data.load_edits(120) for text in (text, refs[0])]
    texts = {str(n): text for n, text in enumerate(sentences)}
    keys = list(texts)
    near = {
        (first, second)
        for n, first in enumerate(keys)
        for second in keys[n + 1 :]
        if trigram_similarity(texts[first], texts[second]) >= 0.6
    }
    assert set(near_duplicates(texts, 0.6)) == near and len(near) > 50


def grouped_pair_by_pair(texts: Mapping[str, str], threshold: float) -> set[frozenset[str]]:
    pairs = list(near_duplicates(texts, threshold))
    group = {key: {key} for key in texts}
    for first, second in pairs:
        if group[first] is not group[second]:
            group[first] |= group[second]
            for key in group[second]:
                group[key] = group[first]
    return {frozenset(keys) for keys in group.values()}


@pytest.mark.parametrize("threshold", [0.35, 0.6, 0.9])
@pytest.mark.parametrize(
    ("make", "frames", "fillings"),
    [
        (framed_questions, 40, 10),
        (framed_questions, 3, 120),
        (framed_questions, 300, 1),
        (natural_questions, 40, 10),
        (natural_questions, 200, 1),
    ],
)
def test_groups_are_those_of_all_pairs(
    make: Callable[[int, int, random.Random], list[str]],
    frames: int,
    fillings: int,
    threshold: float,
) -> None:
    for seed in range(2):
        questions = make(frames, fillings, random.Random(seed))
        questions += ["", "?", "a", "ab", "Same?", "same", "你们几点开门", "你们几点关门"]
        texts = {str(number): question for number, question in enumerate(questions)}
        found = near_duplicate_groups(texts, threshold)
        assert sorted(key for group in found for key in group) == sorted(texts)
        assert {frozenset(group) for group in found} == grouped_pair_by_pair(texts, threshold)


@pytest.mark.parametrize("make", [framed_questions, natural_questions])
def test_few_pairs_are_compared_where_frames_share_their_trigrams(
    make: Callable[[int, int, random.Random], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    join_near = near_groups._Groups.join_near
    monkeypatch.setattr(
        near_groups._Groups,
        "join_near",
        lambda self, first, second: compared.append(len(first)) or join_near(self, first, second),
    )
    texts = {str(n): text for n, text in enumerate(make(200, 20, random.Random(7)))}
    near_duplicate_groups(texts, 0.6)
    assert sum(compared) < 1000 * len(texts)  # all pairs: 2,000 a text


def test_with_known_texts_only_pairs_of_one_of_them_and_another_are_found() -> None:
    questions = framed_questions(6, 12, random.Random(1))
    texts = {str(number): question for number, question in enumerate(questions)}
    known = set(list(texts)[::3])
    expected = {
        frozenset(pair) for pair in near_duplicates(texts, 0.6) if len({*pair} & known) == 1
    }
    found = [frozenset(pair) for pair in near_duplicates(texts, 0.6, known=known)]
    assert set(found) == expected and len(found) == len(expected) > 10
    assert list(near_duplicates(texts, 0.6, known=())) == []
