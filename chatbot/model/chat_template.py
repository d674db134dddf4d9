"""Turns messages into text and tokens by the base's chat template.

Training imports this very module, so what is trained is what is served.
"""

from collections.abc import Mapping, Sequence
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


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, answer: str | None = None
) -> str:
    """Return the prompt as the model sees it, generation prompt included, control tokens escaped.

    With `answer`: the prompt followed by that answer and the template's end of turn. Raises
    ChatTemplateError.
    """
    escaped = [_escaped(message, tokenizer) for message in messages]
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


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, prompt: bool
) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except TemplateError as e:
        raise ChatTemplateError(f"The model's chat template refuses this: {first_line(e)}") from e
    return cast(str, text)
