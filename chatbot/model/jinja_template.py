"""Runs a base's chat template (Jinja) on messages whose texts it never sees.

A mark stands for each text, which goes in after the template has run. So what people write cannot
change what a template does (Qwen3's splits an answer at ``</think>``), and it arrives whole.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from chatbot.model.escape import ChatTemplateError
from feedback.errors import first_line

Messages = Sequence[Mapping[str, str]]
"""Messages in order, each with ``role`` and ``content``; an assistant's may have a ``thought``."""

TEMPLATE_DATE = date(2024, 7, 26)
"""Today, for templates that write the date (Llama 3.2's own default): the prompt that an adapter
was trained on is also tomorrow's."""
_DATE_FORMATS = ["Y", "y", "m", "-m", "B", "b", "d", "-d", "e", "A", "a", "j", "H", "M", "S"]
_PINNED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{f}', '{TEMPLATE_DATE.strftime(f'%{f}')}')" for f in _DATE_FORMATS)
    + " }}{% endmacro %}{{ '' }}"
)
"""What goes before a template in which transformers defines the real `strftime_now`: it lets no
function of ours in."""

SYSTEM, QUESTION, THOUGHT, ANSWER = (f"\ue000{text}\ue001" for text in "sqta")
"""Marks for the texts of a conversation that shows what a template writes around them."""
_MARK = re.compile("\ue000(\\d+)\ue001")
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")


class HiddenTexts:
    """Keeps texts out of a template's sight: it gets a mark for each."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def hide(self, text: str) -> str:
        """Return a mark for the text, within its outer white space, which templates may trim."""
        core = text.strip()
        self._texts.append(core)
        return text.replace(core, f"\ue000{len(self._texts) - 1}\ue001", 1)

    def reveal(self, written: str) -> str:
        """Put the texts into what the template wrote."""
        return _MARK.sub(lambda mark: self._texts[int(mark[1])], written)


@dataclass(frozen=True)
class MessageForm:
    """Says in which form a template takes messages."""

    parts: bool = False
    """Whether the content is a list of parts, as templates for images want it."""
    thought_part: bool = False
    """Whether a thought is such a part (Magistral's), not a key of the message."""
    system: bool = True
    """Whether there is a system role; Gemma's and early Mistral's refuse it, others drop it."""

    def write(self, messages: Messages) -> list[dict[str, Any]]:
        """Return the messages in this form, a system message before the first question's text
        where there is no such role."""
        if not self.system and [message["role"] for message in messages[:2]] == ["system", "user"]:
            head, question, *later = messages
            folded = f"{head['content']}\n\n{question['content']}"
            messages = [{**question, "content": folded}, *later]
        return [self._write_message(message) for message in messages]

    def _write_message(self, message: Mapping[str, str]) -> dict[str, Any]:
        content: Any = message["content"]
        thought = message.get("thought")
        if self.parts or (thought and self.thought_part):
            content = [{"type": "text", "text": content}]
        written = {"role": message["role"], "content": content}
        if thought and self.thought_part:
            content.insert(0, {"type": "thinking", "thinking": thought})
        elif thought:
            written |= dict.fromkeys(_THOUGHT_KEYS, thought)
        return written


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, prompt: bool, thinking: bool
) -> str:
    """Return what the template writes: with `prompt`, up to where the next answer is generated.

    Raises ChatTemplateError where it refuses the messages.
    """
    form = find_form(tokenizer, chat_template(tokenizer))
    return _run(tokenizer, form.write(messages), prompt=prompt, thinking=thinking)


def probe_template(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, prompt: bool, thinking: bool
) -> str:
    """Return what `apply_template` does, to learn from it; nothing where it refuses."""
    try:
        return apply_template(tokenizer, messages, prompt=prompt, thinking=thinking)
    except ChatTemplateError:
        return ""


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template for chats; some tokenizers have others beside it, for tools."""
    return cast(str, tokenizer.get_chat_template())


@lru_cache(maxsize=4)
def find_form(tokenizer: PreTrainedTokenizerBase, template: str) -> MessageForm:
    """Find by trial in which form the tokenizer's template, which is `template`, takes messages."""
    talk = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": SYSTEM},
    ]
    parts = not _writes(tokenizer, MessageForm(), talk) and _writes(
        tokenizer, MessageForm(parts=True), talk
    )
    system = _writes(
        tokenizer, MessageForm(parts), [{"role": "system", "content": SYSTEM}, talk[0]]
    )
    thought = [talk[0], {**talk[1], "thought": THOUGHT}]
    # A template that knows no such part may still write it, as JSON.
    thought_part = (
        re.search(r"== *['\"]thinking['\"]", template) is not None
        and not _writes(tokenizer, MessageForm(parts), thought, prompt=False)
        and _writes(tokenizer, MessageForm(parts, True), thought, prompt=False)
    )
    return MessageForm(parts, thought_part, system)


def _writes(
    tokenizer: PreTrainedTokenizerBase,
    form: MessageForm,
    messages: Messages,
    *,
    prompt: bool = True,
) -> bool:
    """Tell whether the template writes every text of the messages in this form."""
    try:
        written = _run(tokenizer, form.write(messages), prompt=prompt, thinking=True)
    except ChatTemplateError:
        return False
    texts = [message[key] for message in messages for key in message if key != "role"]
    return all(text in written for text in texts)


def _run(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    *,
    prompt: bool,
    thinking: bool,
) -> str:
    template = chat_template(tokenizer)
    absent = [name for name in ("bos_token", "eos_token") if getattr(tokenizer, name) is None]
    variables: dict[str, Any] = dict.fromkeys(absent, "") | _thinking_switch(template, thinking)
    if "strftime_now" in template:
        template = _PINNED_CLOCK + template
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=prompt,
            **variables,
        )
    except (TemplateError, TypeError) as e:
        raise ChatTemplateError(f"The model's chat template refuses this: {first_line(e)}") from e
    return cast(str, text)


@lru_cache(maxsize=8)
def _thinking_switch(template: str, on: bool) -> dict[str, Any]:
    """Return the variables by which templates let a model think or not; each reads its own."""
    switch: dict[str, Any] = {"enable_thinking": on, "thinking": on}
    if re.search(r"\bif reasoning\b", template):
        switch["reasoning"] = on
    no_effort = re.search(r"['\"](none|no_think)['\"]", template)
    if "reasoning_effort" in template and no_effort:
        switch["reasoning_effort"] = "high" if on else no_effort[1]
    return switch
