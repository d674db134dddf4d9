"""Turns messages into text and tokens by the base's chat template.

Training imports this very module, so what is trained is what is served.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from chatbot.model.base import Base, first_line
from chatbot.model.escape import ChatTemplateError, control_tokens, escape_control_tokens

Messages = Sequence[Mapping[str, str]]
"""Messages in order, each with ``role`` and ``content``."""

ROLES = frozenset({"system", "user", "assistant"})


def render(
    base: Base | PreTrainedTokenizerBase, messages: Messages, *, answer: str | None = None
) -> str:
    """Return the prompt as the model sees it, generation prompt included, control tokens escaped.

    With `answer`: the prompt followed by that answer and the template's end of turn. Raises
    ChatTemplateError.
    """
    tokenizer = base.tokenizer if isinstance(base, Base) else base
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


def end_token_ids(base: Base) -> frozenset[int]:
    """Return the token ids that end an answer: the model's, the tokenizer's and the template's."""
    tokenizer = base.tokenizer
    config = base.model.generation_config
    configured = config.eos_token_id if config is not None else None
    found = {configured} if isinstance(configured, int) else set(configured or ())
    question = [{"role": "user", "content": "x"}]
    # What the template writes after an answer; its first control token ends the turn.
    tail = render(base, question, answer="x").removeprefix(render(base, question) + "x")
    control = set(control_tokens(tokenizer).values())
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    found.update([id for id in ids if id in control][:1])
    return frozenset(found | {tokenizer.eos_token_id})


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
