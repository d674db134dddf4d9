"""Finds how a base writes its thoughts, from its chat template.

A thinking base writes a thought before its answer, between two markers: ``<think>`` and
``</think>``, ``[THINK]`` and ``[/THINK]``, or the heads of two channels (gpt-oss).
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from chatbot.model.jinja_template import (
    ANSWER,
    QUESTION,
    THOUGHT,
    chat_template,
    probe_template,
)

_OPENING_TAG = re.compile(r"[<\[◁]\|?[\w:]*(?:think|thought|reasoning)[\w:]*\|?[>\]▷]", re.I)
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

    def write(self, thought: str) -> str:
        """Return what goes behind the prompt of thinking on for this thought, up to the answer."""
        return ("" if self.prefilled else self.opening) + thought + self.closing

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
    prompt = probe_template(tokenizer, _PROBE, prompt=True, thinking=True)
    answer = {"role": "assistant", "content": ANSWER, "thought": THOUGHT}
    written = probe_template(tokenizer, [*_PROBE, answer], prompt=False, thinking=True)
    head, _, rest = written.partition(THOUGHT)
    closing, answer_follows, _ = rest.partition(ANSWER)
    if not answer_follows:
        return _read_from_source(template, prompt)
    if head.startswith(prompt) and head[len(prompt) :].strip():
        return ThoughtFormat(head[len(prompt) :], closing, prefilled=False)
    if prompt.startswith(head) and prompt[len(head) :].strip() not in ("", closing.strip()):
        return ThoughtFormat(prompt[len(head) :], closing, prefilled=True)
    if tags := list(_OPENING_TAG.finditer(head)):
        return _format(head[tags[-1].start() :], closing, prompt)
    without = probe_template(tokenizer, _PROBE, prompt=True, thinking=False)
    opening = _first_difference(prompt.rpartition(QUESTION)[2], without.rpartition(QUESTION)[2])
    return ThoughtFormat(opening, closing, prefilled=True) if opening.strip() else None


def _first_difference(text: str, other: str) -> str:
    """Return the text from where it differs from the other."""
    common = takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
    return text[len(list(common)) :]


def _read_from_source(template: str, prompt: str) -> ThoughtFormat | None:
    """Return the format whose markers a template names, but only to take thoughts away."""
    for opening, closing in _CHANNELS:
        if closing.strip() in template:
            return ThoughtFormat(opening, closing, prefilled=False)
    for tag in re.findall(r"[<\[◁]/[\w:]+[>\]▷]", template):
        opening = tag.replace("/", "", 1)
        if _OPENING_TAG.fullmatch(opening):
            # Mistral's, and one behind which the prompt breaks no line, stand within a line.
            if opening[0] == "[" or prompt.endswith(opening):
                return _format(opening, tag, prompt)
            return _format(f"{opening}\n", f"\n{tag}\n\n", prompt)
    return None


def _format(opening: str, closing: str, prompt: str) -> ThoughtFormat:
    prefilled = prompt.rstrip().endswith(opening.strip())
    if prefilled:
        opening = prompt[prompt.rindex(opening.strip()) :]
    return ThoughtFormat(opening, closing, prefilled)
