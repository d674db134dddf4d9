r"""Replaces in text from outside what no database, tokenizer or search index can hold.

    to_well_formed("a\ud83d")        # "a\ufffd": half an emoji, which JavaScript's slice leaves

A lone surrogate and a NUL each become U+FFFD, as in JavaScript's ``toWellFormed`` and in HTML; the
rest of what a person wrote is kept. The bodies of requests pass here before they are read
(``chatbot.api.json_body``), and whatever reaches the database passes here again.
"""

import re
from typing import Any

REPLACEMENT = "\ufffd"
_ILL_FORMED = re.compile("[\0\ud800-\udfff]")


def to_well_formed(text: str) -> str:
    """Return the text with U+FFFD for each NUL and lone surrogate; a pair becomes its character."""
    if not _ILL_FORMED.search(text):
        return text
    paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return paired.replace("\0", REPLACEMENT)


def all_well_formed(value: Any) -> Any:
    """Return a JSON value whose texts and keys are well-formed."""
    if isinstance(value, str):
        return to_well_formed(value)
    if isinstance(value, dict):
        return {all_well_formed(key): all_well_formed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [all_well_formed(one) for one in value]
    return value
