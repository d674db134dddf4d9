"""Finds how a base writes its thoughts, from its chat template.

A thinking base writes a thought before its answer, between two markers: ``<think>`` and
``</think>``, ``[THINK]`` and ``[/THINK]``, or the heads of two channels (gpt-oss).
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from chatbot.model.jinja_template import (
    ANSWER,
    QUESTION,
    THOUGHT,
    apply_template,
    chat_template,
)

_OPENING_TAG = re.compile(r"[<\[◁](?:\w+:)?(?:think|thinking|thought|reasoning)[>\]▷]", re.I)
_CHANNELS = (
    ("<|channel>thought\n", "\n<channel|>"),  # Gemma 4
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
)
_PROBE = [{"role": "user", "content": QUESTION}]


@dataclass(frozen=True)
class ThoughtFormat:
    """Says how a base writes its thoughts: opening, thought, closing, answer."""

    opening: str
    """The text that begins a thought, control tokens and white space included."""
    closing: str
    """The text that ends it and begins the answer."""
    prefilled: bool
    """Whether the prompt with thinking on already ends in `opening`."""

    @property
    def opening_marker(self) -> str:
        """Return what to look for where a thought begins."""
        return self.opening.strip()

    @property
    def closing_marker(self) -> str:
        """Return what to look for where a thought ends: bases vary the white space around it."""
        return self.closing.strip()


def find_thought_format(tokenizer: PreTrainedTokenizerBase) -> ThoughtFormat | None:
    """Return how the base writes its thoughts; None: it does not think."""
    return _find(tokenizer, chat_template(tokenizer))


@lru_cache(maxsize=4)
def _find(tokenizer: PreTrainedTokenizerBase, template: str) -> ThoughtFormat | None:
    prompt = apply_template(tokenizer, _PROBE, prompt=True, thinking=True)
    answer = {"role": "assistant", "content": ANSWER, "thought": THOUGHT}
    written = apply_template(tokenizer, [*_PROBE, answer], prompt=False, thinking=True)
    if THOUGHT not in written:
        return _read_from_source(template, prompt)
    head, _, rest = written.partition(THOUGHT)
    closing = rest[: rest.index(ANSWER)]
    if head.startswith(prompt) and head[len(prompt) :].strip():
        return ThoughtFormat(head[len(prompt) :], closing, prefilled=False)
    opening = head[[tag.start() for tag in _OPENING_TAG.finditer(head)][-1] :]
    return _format(opening, closing, prompt)


def _read_from_source(template: str, prompt: str) -> ThoughtFormat | None:
    """Return the format whose markers a template names, but only to take thoughts away."""
    for opening, closing in _CHANNELS:
        if closing.strip() in template:
            return ThoughtFormat(opening, closing, prefilled=False)
    for tag in re.findall(r"[<\[◁]/(?:\w+:)?\w+[>\]▷]", template):
        opening = tag.replace("/", "", 1)
        if _OPENING_TAG.fullmatch(opening):
            # Mistral's and an opening without a line break in the prompt stand within a line.
            inline = opening[0] == "[" or prompt.endswith(opening)
            return (
                _format(opening, tag, prompt)
                if inline
                else _format(f"{opening}\n", f"\n{tag}\n\n", prompt)
            )
    return None


def _format(opening: str, closing: str, prompt: str) -> ThoughtFormat:
    prefilled = prompt.rstrip().endswith(opening.strip())
    if prefilled:
        opening = prompt[prompt.rindex(opening.strip()) :]
    return ThoughtFormat(opening, closing, prefilled)
