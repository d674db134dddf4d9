"""Measures how similar texts are: by words, by trigrams, and all near-duplicates at once."""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache

_MEANINGFUL = frozenset("#%&@*/\\")
"""Marks that tell things apart (C#, 5%, R&D); all other punctuation only ends or groups words."""

_STOP_WORDS = """
    a an and any anything are at am as be been but by can could cant did do does dont for from
    get give go got had has have hello hey hi how i id if ill im in is it its ive just know let like
    may me might mine must my need of on one or our please shall should so some tell thank thanks
    that the their them then there these they this those to too us want was we were what when where
    which who why will with would you your yours about much many long"""
_STOP = frozenset(_STOP_WORDS.split())

_POWER_OR_FRACTION = re.compile(r"(?<=\d)(?=[\xb2\xb3\xb9\xbc-\xbe\u2070-\u2089\u2150-\u2189])")
_MINUS = re.compile(r"(?<![^\s(\[])[-\N{EN DASH}](?=\d)")
_POINT = re.compile(r"(?<![^\s(\[])[.,](?=\d)")

_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""A run of a script that sets no spaces between its words: Thai, Lao, Tibetan, Burmese, Khmer,
Japanese, Chinese."""


def normalise_text(question: str) -> str:
    """Return a text without case, most punctuation and extra spacing, to compare it by.

    What makes another number stays: 10² is not 102, 5½ not 51/2, -5 not 5, and .5 not 5.
    """
    text = unicodedata.normalize("NFKC", _POWER_OR_FRACTION.sub("^", question)).casefold()
    text = _POINT.sub("0.", _MINUS.sub("\N{MINUS SIGN}", text)).replace("!=", "\N{NOT EQUAL TO}")
    text = text.replace("i\N{COMBINING DOT ABOVE}", "i")  # what casefold makes of the Turkish İ
    for apostrophe in "'`\N{RIGHT SINGLE QUOTATION MARK}\N{ACUTE ACCENT}":
        text = text.replace(apostrophe, "")
    return " ".join("".join(map(_normalise_mark, text)).split()) or question.strip()


@lru_cache(10_000)
def _normalise_mark(mark: str) -> str:
    category = unicodedata.category(mark)
    if category == "Cf" or mark == "\N{ARABIC TATWEEL}":
        return ""  # invisible, or only stretches a word
    return " " if category[0] == "P" and mark not in _MEANINGFUL else mark


def split_scripts(text: str) -> tuple[str, list[str]]:
    """Return a text without its runs of scripts that set no spaces between words, and these."""
    return _UNSPACED.sub(" ", text), _UNSPACED.findall(text)


def content_words(question: str) -> set[str]:
    """Return the words that say what a question is about: all but stop words.

    Of a script without spaces these are the pairs of neighbouring characters.
    """
    spaced, runs = split_scripts(normalise_text(question))
    pairs = {run[i : i + 2] for run in runs for i in range(max(1, len(run) - 1))}
    return (set(spaced.split()) | pairs) - _STOP


def count_shared_words(words: set[str], others: set[str]) -> int:
    """Count those of some content words that are among others, inflections aside."""
    by_stem = defaultdict(list)
    for other in others:
        by_stem[other[:_SHORTEST_STEM]].append(other)
    return sum(
        any(_same_stem(word, other) for other in by_stem[word[:_SHORTEST_STEM]]) for word in words
    )


def word_overlap(first: set[str], second: set[str]) -> float:
    """Return the Dice coefficient (0 to 1) of two sets of content words, inflections aside."""
    if not first or not second:
        return 0.0
    return (count_shared_words(first, second) + count_shared_words(second, first)) / (
        len(first) + len(second)
    )


_SHORTEST_STEM = 4


def _same_stem(first: str, second: str) -> bool:
    """Tell whether these may be forms of one word: open and opening, delivery and deliveries."""
    shorter = min(len(first), len(second))
    stem = max(_SHORTEST_STEM, shorter - 1)
    return first == second or (shorter >= stem and first[:stem] == second[:stem])


def trigrams(text: str) -> frozenset[str]:
    """Return the runs of three characters of a normalised text, its ends marked by spaces."""
    padded = f"  {normalise_text(text)} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def trigram_similarity(first: str, second: str) -> float:
    """Return the Jaccard similarity of two texts' trigrams: 1 for equal ones, 0 for unrelated."""
    return jaccard(trigrams(first), trigrams(second))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets, 0 to 1."""
    return len(first & second) / len(first | second) if first or second else 1.0


def near_duplicates(
    texts: Mapping[str, str], threshold: float, *, known: Collection[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield every pair of keys whose texts are at least this similar, without comparing all.

    With ``known`` keys only the pairs of one of these and another. Two sets that similar share one
    of their rarest members, so only those are indexed (prefix filtering: Chaudhuri et al. 2006,
    Bayardo et al. 2007).
    """
    sets = {key: trigrams(text) for key, text in texts.items()}
    common = Counter(gram for grams in sets.values() for gram in grams)
    index: dict[str, list[str]] = defaultdict(list)
    for key in sorted(sets, key=lambda key: key not in (known or ())):
        grams = sets[key]
        rarest = sorted(grams, key=lambda gram: (common[gram], gram))
        prefix = rarest[: len(grams) - math.ceil(threshold * len(grams)) + 1]
        if known is None or key not in known:
            seen = {other for gram in prefix for other in index[gram]}
            for other in sorted(seen):
                if jaccard(grams, sets[other]) >= threshold:
                    yield other, key
        if known is None or key in known:
            for gram in prefix:
                index[gram].append(key)
