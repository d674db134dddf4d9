"""Turns messages into text and tokens by the base's chat template.

Training imports this very module, so what is trained is what is served.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from chatbot.model.escape import ChatTemplateError, control_ids, escape_control_tokens
from chatbot.model.jinja_template import (
    ANSWER,
    QUESTION,
    SYSTEM,
    HiddenTexts,
    Messages,
    apply_template,
    chat_template,
    probe_template,
)
from chatbot.model.thought_format import find_thought_format

__all__ = ["FALLBACK_TEMPLATE", "Messages", "encode", "encode_answer", "render"]

FALLBACK_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""The chat template of bases without one: a turn ends in the end token, which no text can forge."""

_TAG = re.compile(r"<[^<>\s]{1,40}>|\[/?\w+\]|◁[^◁▷\s]{1,40}▷")
ROLES = frozenset({"system", "user", "assistant"})


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    answer: str | None = None,
    thinking: bool = False,
    thought: str | None = None,
) -> str:
    """Return the prompt as the model sees it, generation prompt included, control tokens escaped.

    Without `thinking` the answer comes next; with it, a base that thinks begins with a thought.
    A `thought` stands before the answer. With `answer`: the prompt followed by that answer and the
    template's end of turn. Raises ChatTemplateError.
    """
    return "".join(_write(tokenizer, messages, answer, thinking, thought))


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, thinking: bool = False
) -> list[int]:
    """Return the token ids of `render(tokenizer, messages, thinking=thinking)`."""
    return _tokenize(tokenizer, render(tokenizer, messages, thinking=thinking))


def encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    answer: str,
    *,
    thought: str | None = None,
) -> tuple[list[int], list[int]]:
    """Return the prompt's token ids, and those a model must generate after it.

    The prompt is that of serving without thinking, or with it and a `thought` of the base's. What
    comes after it is the answer and its end token. The two parts are encoded separately, as they
    come about when the answer is generated: a tokenizer might merge characters across their border.
    """
    prompt, written = _write(tokenizer, messages, answer, False, thought)
    ids = _tokenize(tokenizer, written)
    # What a template writes after the end token is never generated.
    ends = (i for i, id in enumerate(ids) if id in control_ids(tokenizer))
    end = next(ends, len(ids))
    answer_end = ids[end : end + 1] or [tokenizer.eos_token_id]
    return _tokenize(tokenizer, prompt), [*ids[:end], *answer_end]


def _write(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    answer: str | None,
    thinking: bool,
    thought: str | None,
) -> tuple[str, str]:
    """Return the prompt, and the answer with its end of turn; see `render`."""
    texts = HiddenTexts()
    hidden = [_hide(message, texts, tokenizer) for message in messages]
    format = find_thought_format(tokenizer)
    thinks = format is not None and (thinking or thought is not None)
    prompt = apply_template(tokenizer, hidden, prompt=True, thinking=thinks)
    if not thinks:
        prompt += _lead_to_answer(tokenizer, chat_template(tokenizer))
    elif format is not None and thought is not None:
        prompt += format.write(texts.hide(_escape(thought.strip(), tokenizer)))
    finished = ""
    if answer is not None:
        finished = _write_answer(tokenizer, hidden, prompt, texts, _escape(answer, tokenizer))
    return texts.reveal(prompt), texts.reveal(finished)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _hide(
    message: Mapping[str, str], texts: HiddenTexts, tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    if message["role"] not in ROLES:
        raise ChatTemplateError(f"Unknown role {message['role']!r}. Use system, user or assistant.")
    if message["role"] == "system" and not message["content"].strip():
        return dict(message)  # a template may have a system prompt of its own instead
    hidden = {
        key: texts.hide(_escape(message[key], tokenizer))
        for key in ("content", "thought")
        if key in message
    }
    return {"role": message["role"], **hidden}


def _escape(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return escape_control_tokens(text, tokenizer, _tags(tokenizer, chat_template(tokenizer)))


@lru_cache(maxsize=4)
def _tags(tokenizer: PreTrainedTokenizerBase, template: str) -> frozenset[str]:
    """Return the tags, such as ``[INST]``, that the template and the base write around texts.

    Where the tokenizer has no token for one, text could pass for it.
    """
    question = {"role": "user", "content": QUESTION}
    answer = {"role": "assistant", "content": ANSWER}
    talk: Messages = [{"role": "system", "content": SYSTEM}, question, answer]
    written = probe_template(tokenizer, talk, prompt=False, thinking=False)
    for on in (False, True):
        written += probe_template(tokenizer, [*talk, question], prompt=True, thinking=on)
    format = find_thought_format(tokenizer)
    tags = set(_TAG.findall(written))
    if format is not None:
        tags |= {format.closing_marker, *_TAG.findall(format.opening + format.closing)}
    return frozenset(tags)


@lru_cache(maxsize=4)
def _lead_to_answer(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return what goes after the generation prompt without thinking, so that the answer is next.

    It is what the template, which is `template`, itself writes before a finished answer (the head
    of gpt-oss's final channel); nothing where it has a switch; else an empty thought.
    """
    question = [{"role": "user", "content": QUESTION}]
    finished = [*question, {"role": "assistant", "content": ANSWER}]
    prompt = probe_template(tokenizer, question, prompt=True, thinking=False)
    before = probe_template(tokenizer, finished, prompt=False, thinking=False).partition(ANSWER)[0]
    if before.startswith(prompt) and before[len(prompt) :].strip():
        return before[len(prompt) :]
    format = find_thought_format(tokenizer)
    if format is None:
        return ""
    if prompt == probe_template(tokenizer, question, prompt=True, thinking=True):
        return format.write("")
    # A switch may close the thought, and leave the head of the answer to the model (Cohere's).
    closing = format.closing
    closed = [
        n for n in range(len(closing)) if closing[:n].strip() and prompt.endswith(closing[:n])
    ]
    return closing[max(closed) :] if closed and closing[max(closed) :].strip() else ""


def _write_answer(
    tokenizer: PreTrainedTokenizerBase,
    hidden: Messages,
    prompt: str,
    texts: HiddenTexts,
    answer: str,
) -> str:
    """Return the answer as the template writes it after the prompt, and its end of turn."""
    content = texts.hide(answer)
    mark = content.strip()
    finished = [*hidden, {"role": "assistant", "content": content}]
    whole = apply_template(tokenizer, finished, prompt=False, thinking=False)
    before, _, after = whole.partition(mark)
    # Some templates write a finished answer differently from the start of one to generate.
    space = before[len(prompt) :] if before.startswith(prompt) else content.partition(mark)[0]
    has_end = not control_ids(tokenizer).isdisjoint(_tokenize(tokenizer, after))
    return space + mark + (after if has_end else str(tokenizer.eos_token))
