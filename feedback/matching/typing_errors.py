"""Tells typing errors from other words: "trail" may be typed "trial", but that is another word.

So only what is a word in no language counts as an error for a word of one. Dictionaries are at
hand for seven languages in Latin letters; of all others nothing counts as an error.
"""

import gzip
import re
import string
from collections.abc import Iterator
from functools import cache
from importlib import resources

import numpy as np

_LANGUAGES = ("en", "de", "es", "fr", "it", "nl", "pt")
_LETTERS = string.ascii_lowercase + "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿœ"
_MIN_LENGTH = 5
"""In a shorter word almost any letter makes another one."""


def possible_originals(typed: str) -> Iterator[str]:
    """Yield all that one typing error after the first letter could have turned into a word.

    That is a Damerau-Levenshtein distance of 1: a letter added, left out or replaced, or two
    neighbours swapped. Yields nothing for a short word, and for one of other than Latin letters.
    """
    if len(typed) < _MIN_LENGTH or not set(typed) <= set(_LETTERS):
        return
    for i in range(1, len(typed) + 1):
        before, after = typed[:i], typed[i:]
        yield from (before + letter + after for letter in _LETTERS)
        if after:
            yield before + after[1:]
            yield before + after[1::-1] + after[2:]
            yield from (before + letter + after[1:] for letter in _LETTERS)


def is_typing_error(typed: str, meant: str) -> bool:
    """Tell whether one of its possible originals is what was meant by a word.

    A plural is the same word. Names and negations are no errors of each other: they are words.
    """
    short, long = sorted((typed, meant), key=len)
    if len(short) < _MIN_LENGTH or typed == meant:
        return False
    is_plural = long == short + "s" and not short.endswith("s")
    return is_plural or (_is_word(meant) and not _is_word(typed))


Hashes = np.ndarray[tuple[int], np.dtype[np.int64]]


def _is_word(word: str) -> bool:
    hashes, sought = _dictionary(), hash(word.encode())
    position = int(np.searchsorted(hashes, sought))
    return position < len(hashes) and int(hashes[position]) == sought


@cache
def _dictionary() -> Hashes:
    """Return the sorted hashes of all words, shape (words,): 1.5 million in 12 MB.

    They take a second of CPU to load, once in a process, and only when a question is found that
    may be an approved one mistyped.
    """
    return np.unique(np.concatenate([_hashes(language) for language in _LANGUAGES]))


def _hashes(language: str) -> Hashes:
    """Return the hashes of one language's words, without apostrophes as in normalised texts.

    pyspellchecker has them as the keys of a JSON object; to parse all of it takes four times as
    long.
    """
    file = resources.files("spellchecker") / "resources" / f"{language}.json.gz"
    counts = gzip.decompress(file.read_bytes()).replace(b"'", b"")
    return np.array([hash(word) for word in re.findall(rb'"([^"]+)":', counts)], np.int64)
