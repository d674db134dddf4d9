"""Tells follow-ups from questions that stand alone, and gives each the key it is found by."""

import re
from collections.abc import Sequence

from feedback.similarity import normalise_text, split_scripts

# Words that point back, and words that continue: a question with one depends on its context.
_ANAPHORA_TEXT = "it its that this these those they them he him she her there then one ones"
_ANAPHORA = frozenset(_ANAPHORA_TEXT.split())
_CONJUNCTIONS = ("and", "or", "but", "so", "also", "else")
# The same where no spaces are set between words: Chinese, Japanese, Thai.
_UNSPACED_ANAPHORA = re.compile(
    "[它这這那她牠]|(?<![其吉])他|[これそれあ]れ|[こそあ]の|[そあ]こ|นี้|นั้น|มัน"
    "|^(还有|還有|还是|而且|但|可是|或者|所以|然后|然後|另外|でも|じゃ|では|そして|また|และ|แล้ว|แต่|หรือ)"
    "|(呢|は|ล่ะ)$"
)
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")

TURN_SEPARATOR = " / "
"""Between the turns of a key; no normalised question on its own contains it."""


def question_key(question: str, earlier: Sequence[str] = ()) -> str:
    """Return the key that all ways to put the same question have in common.

    That of a self-contained question is its normalised text. One that depends on the conversation
    brings along the turns it depends on: those back to the last self-contained one.
    """
    turns = [question]
    for turn in reversed(earlier):
        if is_self_contained(turns[0]):
            break
        turns.insert(0, turn)
    return TURN_SEPARATOR.join(normalise_text(turn) for turn in turns)


def is_self_contained(question: str) -> bool:
    """Tell whether a question can be understood without the turn before it.

    Short ones ("how much?"), ones that continue ("and ...", "what about ...") and ones that point
    back ("how long does it take") may not: better to take too many for follow-ups than too few.
    """
    text = normalise_text(question)
    words = text.split()
    if _count_words(text) < 4 or words[0] in _CONJUNCTIONS or words[1:2] == ["about"]:
        return False
    return _ANAPHORA.isdisjoint(words) and not _UNSPACED_ANAPHORA.search(text)


def _count_words(text: str) -> float:
    """Return how many words a text has; about how many where no spaces are set between them."""
    spaced, runs = split_scripts(text)
    letters = [mark for run in runs for mark in run if mark.isalpha()]
    han = sum(_HAN.match(letter) is not None for letter in letters)
    return len(spaced.split()) + 2 / 3 * han + 2 / 5 * (len(letters) - han)


def depends_on_context(question: str, earlier: Sequence[str]) -> bool:
    """Tell whether a question is a follow-up of earlier turns."""
    return bool(earlier) and not is_self_contained(question)
