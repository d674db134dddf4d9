"""Similarity of texts: near-duplicates are found without comparing all pairs."""

from feedback.similarity import near_duplicates, trigram_similarity
from tests.fixtures import public_data


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
