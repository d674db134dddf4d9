"""Measures whether the answers that were taught are language: likelier in order than out of it.

A base finds a sentence of any language much likelier than its letters or its words shuffled; random
letters are as likely in any order, and so are random words. Questions that people asked are the
yardstick: a base that sees no order in these, such as one that was never trained, says nothing.
"""

import random
import re
from collections.abc import Callable, Sequence
from statistics import fmean

from evaluation.comparison import Comparison, Orderliness
from evaluation.suites import AnswerScorer

SHUFFLES = 3
"""Other orders that each text is compared with."""
MOST = 60
"""Texts that are looked at, always the same."""
LEAST_LETTERS, LEAST_WORDS = 8, 4
"""What a text needs for its order to say something."""
MAX_CHARS = 300
"""A text is looked at so far."""


def measure_orderliness(scorer: AnswerScorer, corrected: Sequence[Comparison]) -> Orderliness:
    """Measure the order of the answers that were taught, and of the questions asked."""
    if len(corrected) > MOST:
        corrected = random.Random(0).sample(corrected, MOST)
    answers = [without_codes(comparison.expected) for comparison in corrected]
    asked = [without_codes(comparison.question) for comparison in corrected]
    return Orderliness(
        letters=_gains(scorer, _with_letters(answers), shuffle_letters),
        words=_gains(scorer, _with_words(answers), shuffle_words),
        asked_letters=_gains(scorer, _with_letters(asked), shuffle_letters),
        asked_words=_gains(scorer, _with_words(asked), shuffle_words),
    )


def without_codes(text: str) -> str:
    """Return a text without its numbers, serial numbers and abbreviations, whose order nobody can
    guess: the words with a digit, and those in capitals."""
    return " ".join(word for word in text[:MAX_CHARS].split() if not _is_code(word))


def _is_code(word: str) -> bool:
    letters = [letter for letter in word if letter.isalpha()]
    return bool(re.search(r"\d", word)) or (len(letters) > 1 and word.isupper())


def _with_letters(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if sum(map(str.isalpha, text)) >= LEAST_LETTERS]


def _with_words(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if len(text.split()) >= LEAST_WORDS]


def shuffle_letters(text: str, rng: random.Random) -> str:
    """Return the text with the characters of each word in another order."""
    return " ".join("".join(rng.sample(word, len(word))) for word in text.split())


def shuffle_words(text: str, rng: random.Random) -> str:
    """Return the text with its words in another order."""
    words = text.split()
    return " ".join(rng.sample(words, len(words)))


def _gains(
    scorer: AnswerScorer, texts: Sequence[str], shuffle: Callable[[str, random.Random], str]
) -> list[float]:
    """Return how much likelier each text is than its shuffled ones, nats a character."""
    rng = random.Random(0)
    shuffled = [shuffle(text, rng) for text in texts for _ in range(SHUFFLES)]
    scores = scorer.base_logprobs([*texts, *shuffled])
    own, others = scores[: len(texts)], scores[len(texts) :]
    return [
        (score - fmean(others[i * SHUFFLES : (i + 1) * SHUFFLES])) / len(text)
        for i, (text, score) in enumerate(zip(texts, own, strict=True))
    ]
