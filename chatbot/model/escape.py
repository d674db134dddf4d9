"""Escapes control tokens in what people write, so that no text ever controls the model."""

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from feedback.errors import TalkbackError

WORD_JOINER = "\u2060"


class ChatTemplateError(TalkbackError):
    """Says why the messages do not fit the model's chat template."""


def escape_control_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, tags: frozenset[str] = frozenset()
) -> str:
    """Return the text with every control token's string broken up, so that it is read as text.

    An invisible word joiner (U+2060) goes in after the first character of each, and of each of the
    `tags` of a chat template that are no tokens. Raises ChatTemplateError where the tokenizer still
    reads a control token.
    """
    pattern = _control_pattern(tokenizer, tags)
    broken = _insert_joiners(text, pattern)
    if _reads_as_control(broken, tokenizer):
        # A normaliser of the tokenizer turned look-alike letters into a control string.
        broken = _insert_joiners(unicodedata.normalize("NFKC", text), pattern)
        if _reads_as_control(broken, tokenizer):
            raise ChatTemplateError("This text holds a control token that cannot be made plain.")
    return broken


@lru_cache(maxsize=4)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """Return the strings that the tokenizer turns into one added token, with its id.

    Runs of white space, which some tokenizers add as tokens, are text and not among them. The
    result is cached: a tokenizer is not changed after it is loaded.
    """
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_tokens)
    found = {str(token): id for id, token in added.items()}
    return {s: id for s, id in found.items() if s in special or s.strip(" \t\r\n\u2581")}


@lru_cache(maxsize=4)
def _control_pattern(
    tokenizer: PreTrainedTokenizerBase, tags: frozenset[str]
) -> re.Pattern[str] | None:
    """Return a pattern of all strings that can be broken up, the longest first; None: none can."""
    found = {s for s in control_tokens(tokenizer) if len(s) > 1} | tags
    strings = sorted(found, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, strings))) if strings else None


@lru_cache(maxsize=4)
def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the control tokens that no text may become."""
    # An unknown letter may well become the unknown token: that controls nothing.
    harmless = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    return frozenset(control_tokens(tokenizer).values()) - harmless


def _insert_joiners(text: str, pattern: re.Pattern[str] | None) -> str:
    # Breaking one string can bring another together, so this goes on until none is left.
    while pattern is not None and pattern.search(text):
        text = pattern.sub(lambda m: m[0][0] + WORD_JOINER + m[0][1:], text)
    return text


def _reads_as_control(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return not control_ids(tokenizer).isdisjoint(ids)
