"""Measures how similar texts are: by words, by trigrams, and all near-duplicates at once."""

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

_MEANINGFUL = frozenset("#%&@*/\\")
"""Marks that tell things apart (C#, 5%, R&D); all other punctuation only ends or groups words."""

_STOP_WORDS = """
    a an and any anything are at am as be been but by can could cant did do does dont for from
    get give go got had has have hello hey hi how i id if ill im in is it its ive just know let like
    may me might mine must my need of on one or our please shall should so some tell thank thanks
    that the their them then there these they this those to too us want was we were what when where
    which who why will with would you your yours about much many long"""
_STOP = frozenset(_STOP_WORDS.split())


def normalise_text(question: str) -> str:
    """Return a text without case, most punctuation and extra spacing, to compare it by."""
    text = unicodedata.normalize("NFKC", question).casefold()
    for apostrophe in "'`\N{RIGHT SINGLE QUOTATION MARK}\N{ACUTE ACCENT}":
        text = text.replace(apostrophe, "")
    kept = "".join(
        " " if unicodedata.category(mark)[0] == "P" and mark not in _MEANINGFUL else mark
        for mark in text
    )
    return " ".join(kept.split()) or question.strip()


def content_words(question: str) -> set[str]:
    """Return the words that say what a question is about: all but stop words."""
    return set(normalise_text(question).split()) - _STOP


def same_but_for_typo(first: str, second: str) -> bool:
    """Tell whether two questions are the same word for word, but for one typing error.

    That is one edit inside a longer word whose first letter is right, in a word without digits;
    Monday is none for Sunday, nor order 1234 for order 1235.
    """
    pairs = list(zip(first.split(), second.split(), strict=False))
    if len(first.split()) != len(second.split()):
        return False
    odd = [pair for pair in pairs if pair[0] != pair[1]]
    return len(odd) <= 1 and all(_is_typo(*pair) for pair in odd)


def _is_typo(first: str, second: str) -> bool:
    long_enough = min(len(first), len(second)) >= 5
    letters = first.isalpha() and second.isalpha() and first[0] == second[0]
    return long_enough and letters and _is_one_edit(first, second)


def _is_one_edit(first: str, second: str) -> bool:
    """Tell whether the Damerau-Levenshtein distance of two unequal words is 1: one letter added,
    left out or replaced, or two neighbours swapped."""
    short, long = sorted((first, second), key=len)
    start = next((i for i, mark in enumerate(short) if mark != long[i]), len(short))
    if len(short) == len(long):
        swapped = short[start : start + 2][::-1] == long[start : start + 2]
        rest = start + 2 if swapped else start + 1
        return short[rest:] == long[rest:]
    return short[start:] == long[start + 1 :]


def count_shared_words(words: set[str], others: set[str]) -> int:
    """Count those of some content words that are among others, inflections aside."""
    return sum(any(_same_stem(word, other) for other in others) for word in words)


def word_overlap(first: set[str], second: set[str]) -> float:
    """Return the Dice coefficient (0 to 1) of two sets of content words, inflections aside."""
    if not first or not second:
        return 0.0
    return (count_shared_words(first, second) + count_shared_words(second, first)) / (
        len(first) + len(second)
    )


def _same_stem(first: str, second: str) -> bool:
    """Tell whether these may be forms of one word: open and opening, delivery and deliveries."""
    shorter = min(len(first), len(second))
    stem = max(4, shorter - 1)
    return first == second or (shorter >= stem and first[:stem] == second[:stem])


def trigrams(text: str) -> frozenset[str]:
    """Return the runs of three characters of a normalised text, its ends marked by spaces."""
    padded = f"  {normalise_text(text)} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def trigram_similarity(first: str, second: str) -> float:
    """Return the Jaccard similarity of two texts' trigrams: 1 for equal ones, 0 for unrelated."""
    return _jaccard(trigrams(first), trigrams(second))


def _jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second) if first or second else 1.0


def near_duplicates(texts: Mapping[str, str], threshold: float) -> Iterator[tuple[str, str]]:
    """Yield every pair of keys whose texts are at least this similar, without comparing all.

    Two sets that similar share one of their rarest members, so only those are indexed
    (prefix filtering: Chaudhuri et al. 2006, Bayardo et al. 2007).
    """
    sets = {key: trigrams(text) for key, text in texts.items()}
    common = Counter(gram for grams in sets.values() for gram in grams)
    index: dict[str, list[str]] = defaultdict(list)
    for key, grams in sets.items():
        rarest = sorted(grams, key=lambda gram: (common[gram], gram))
        prefix = rarest[: len(grams) - math.ceil(threshold * len(grams)) + 1]
        seen = {other for gram in prefix for other in index[gram]}
        for other in sorted(seen):
            if _jaccard(grams, sets[other]) >= threshold:
                yield other, key
        for gram in prefix:
            index[gram].append(key)
