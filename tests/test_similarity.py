"""Similarity of texts: near-duplicates are found without comparing all pairs."""

import random
from collections.abc import Mapping

import pytest

from feedback.matching.near_groups import near_duplicate_groups
from feedback.similarity import near_duplicates, trigram_similarity
from tests.fixtures import public_data
from tests.fixtures.questions import framed_questions


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
@pytest.mark.parametrize(("frames", "fillings"), [(40, 10), (3, 120), (300, 1)])
def test_groups_are_those_of_all_pairs(frames: int, fillings: int, threshold: float) -> None:
    for seed in range(2):
        questions = framed_questions(frames, fillings, random.Random(seed))
        questions += ["", "?", "a", "ab", "Same?", "same", "你们几点开门", "你们几点关门"]
        texts = {str(number): question for number, question in enumerate(questions)}
        found = near_duplicate_groups(texts, threshold)
        assert sorted(key for group in found for key in group) == sorted(texts)
        assert {frozenset(group) for group in found} == grouped_pair_by_pair(texts, threshold)


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
