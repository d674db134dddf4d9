"""Makes other forms of a question: as somebody else would type the same words."""

import re

from feedback.similarity import content_words, normalise_text

_SHORTEST_SWAPPED = 5
"""In a shorter word two letters swapped make another one."""
END_MARK = re.compile(r"[\s.?!\u3002\uff1f\uff01\u2026]+$")
"""What ends a question, in Latin and East Asian scripts."""


def unseen_forms(question: str) -> list[str]:
    """Return forms of a question that never train, to see whether more than its letters is known.

    These are capitals without the mark at the end, two letters swapped, a letter typed twice, and
    where the question is English also a greeting before and thanks behind it. The same question
    always gives the same forms, none is the question, and none is twice.
    """
    text = question.strip()
    forms = [END_MARK.sub("", text).upper(), *_mistyped(text)]
    if is_english(text):
        forms += [f"Good morning, {lower_first(text)}", f"{text} Thanks a lot."]
    return [form for form in dict.fromkeys(forms) if form and form != text]


def _mistyped(text: str) -> list[str]:
    """Return the text with the middle letters of its longest word swapped, and with one doubled."""
    words = [match for match in re.finditer(r"[^\W\d_]+", text) if match.group().lower().islower()]
    longest = max(words, key=lambda match: len(match.group()), default=None)
    if longest is None or len(longest.group()) < _SHORTEST_SWAPPED:
        return []
    start = longest.start() + len(longest.group()) // 2
    before, one, other, after = text[:start], text[start], text[start + 1], text[start + 2 :]
    return [before + other + one + after, before + one + one + other + after]


def is_english(text: str) -> bool:
    """Tell whether a text has two words or more that make English sentences."""
    return len(set(normalise_text(text).split()) - content_words(text)) >= 2


def lower_first(text: str) -> str:
    """Return the text within a sentence: a name, an I or an abbreviation keep their capitals."""
    first = text.split()[0]
    return text if first == "I" or not first[1:].islower() else text[0].lower() + text[1:]
