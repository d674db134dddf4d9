"""Turns messages into text and tokens by the base's chat template.

Training imports this very module, so what is trained is what is served.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from chatbot.model.escape import ChatTemplateError, escape_control_tokens
from feedback.errors import first_line

Messages = Sequence[Mapping[str, str]]
"""Messages in order, each with ``role`` and ``content``."""

FALLBACK_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""The chat template of bases without one: a turn ends in the end token, which no text can forge."""

ROLES = frozenset({"system", "user", "assistant"})
TEMPLATE_DATE = date(2024, 7, 26)
"""Today, for templates that write the date (Llama 3.2's own default): the prompt that an adapter
was trained on is also tomorrow's."""
_PINNED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{d}', '{TEMPLATE_DATE.strftime(f'%{d}')}')" for d in "YymBbdAajHMS")
    + " }}{% endmacro %}{{ '' }}"
)
"""What goes before such a template, in which transformers defines the real `strftime_now`."""


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, answer: str | None = None
) -> str:
    """Return the prompt as the model sees it, generation prompt included, control tokens escaped.

    With `answer`: the prompt followed by that answer and the template's end of turn. Raises
    ChatTemplateError.
    """
    escaped = _fold_system([_escaped(message, tokenizer) for message in messages], tokenizer)
    prompt = _apply_template(tokenizer, escaped, prompt=True)
    if answer is None:
        return prompt
    content = escape_control_tokens(answer, tokenizer)
    whole = _apply_template(
        tokenizer, [*escaped, {"role": "assistant", "content": content}], prompt=False
    )
    # Some templates write a finished answer differently from the start of one to generate.
    return whole if whole.startswith(prompt) else prompt + content + str(tokenizer.eos_token)


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return the token ids of `render(tokenizer, messages)`."""
    text = render(tokenizer, messages)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, answer: str
) -> tuple[list[int], list[int]]:
    """Return the prompt's token ids, and those a model must generate after it.

    The latter are the answer and its end token. The two parts are encoded separately, as they come
    about when the answer is generated: a tokenizer might merge characters across their border.
    """
    prompt = render(tokenizer, messages)
    answer_text = render(tokenizer, messages, answer=answer)[len(prompt) :]
    # What a template writes between the end token and the next turn is never generated.
    ids = tokenizer(answer_text.rstrip(), add_special_tokens=False)["input_ids"]
    return encode(tokenizer, messages), list(ids)


def _escaped(message: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    if message["role"] not in ROLES:
        raise ChatTemplateError(f"Unknown role {message['role']!r}. Use system, user or assistant.")
    return {
        "role": message["role"],
        "content": escape_control_tokens(message["content"], tokenizer),
    }


def _fold_system(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str]]:
    """Put a system message before the first question's text where the template has no place for
    one: Gemma's and early Mistral's refuse it."""
    roles = [message["role"] for message in messages[:2]]
    if roles != ["system", "user"] or _takes_system(tokenizer, str(tokenizer.chat_template)):
        return messages
    system, question, *later = messages
    return [{**question, "content": f"{system['content']}\n\n{question['content']}"}, *later]


@lru_cache(maxsize=4)
def _takes_system(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Tell whether the tokenizer's template, which is `template`, writes a system message."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    try:
        return "Be brief." in _apply_template(tokenizer, messages, prompt=True)
    except ChatTemplateError:
        return False


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, prompt: bool
) -> str:
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template:
        template = _PINNED_CLOCK + template
    absent = [name for name in ("bos_token", "eos_token") if getattr(tokenizer, name) is None]
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=prompt,
            **dict.fromkeys(absent, ""),
        )
    except TemplateError as e:
        raise ChatTemplateError(f"The model's chat template refuses this: {first_line(e)}") from e
    return cast(str, text)
