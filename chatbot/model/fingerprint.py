"""Names what was loaded: a folder by its bytes, weights by a sample of their values, and what is
made of them by what it does.

A base moved, linked, saved anew, or fetched from the Hub keeps weights and behaviour, and so both
names; another model, another chat template or tokenizer has another name.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from chatbot.model.jinja_template import chat_template
from chatbot.model.meta import NamedTensors

COMPUTE_FIELDS = (
    "model_type",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "sliding_window",
)
"""Fields of a config that change what the same weights compute. Few on purpose: what a later
transformers writes besides makes no other base."""
ROPE_FIELDS = ("rope_theta", "rope_type", "factor")

PROBE_TEXT = """When do you open? It's 9:30; call +47 22-33 (ext. 1024), or mail ann@example.org!
 Two  spaces, a\ttab,\n\nthree lines.\n def f(x): return x**2 != 0  # naïve café, Größe, ŁÓDŹ
漢字とカタカナ。 Привет, как дела? שלום مرحبا नमस्ते 한국어 🙂👩‍👩‍👧 e\u0301 ﬁ ½ ²"""
_USER = {"role": "user", "content": "When do you open?"}
_ANSWER = {"role": "assistant", "content": "At nine."}
_THOUGHTFUL = {**_ANSWER, "reasoning_content": "Let me look."}
_SYSTEM = {"role": "system", "content": "Be brief."}
PROBE_CHATS = (
    [_USER],
    [{"role": "user", "content": [{"type": "text", "text": "When do you open?"}]}],
    [_SYSTEM, _USER],
    [_USER, _ANSWER, _USER],
    [_SYSTEM, _USER, _THOUGHTFUL, _USER, _ANSWER, _USER],
)
_NO_CLOCK = "{% macro strftime_now(format) %}{{ format }}{% endmacro %}{{ '' }}"
"""Goes before a template: one that writes the date is the same tomorrow."""


def hash_folder(folder: Path) -> str:
    """Return "sha-" and 12 hex digits over the names and bytes of config, weights and tokenizer."""
    total = hashlib.sha256()
    files = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".jinja"})
    for file in [*files, *sorted(folder.glob("*.txt")), *sorted(folder.glob("*.model"))]:
        with file.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        total.update(f"{file.name} {digest}\n".encode())
    return f"sha-{total.hexdigest()[:12]}"


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Return a name for the weights an adapter belongs to, the same in float32 and bfloat16.

    See `fingerprint_tensors`.
    """
    return fingerprint_tensors((name, value.detach()) for name, value in model.named_parameters())


def fingerprint_tensors(named: NamedTensors) -> str:
    """Hash each tensor's name, shape and 256 of its values, spread evenly and rounded to bfloat16.

    Returns "w-" and 16 hex digits, whatever the order of the tensors.
    """
    total = hashlib.sha256()
    for name, parameter in sorted(named, key=lambda pair: pair[0]):
        flat = parameter.flatten()
        sample = flat[:: max(1, flat.numel() // 256)][:256].to("cpu", torch.bfloat16)
        total.update(f"{name} {tuple(parameter.shape)}\n".encode())
        total.update(sample.view(torch.int16).numpy().tobytes())
    return f"w-{total.hexdigest()[:16]}"


def behaviour_fingerprint(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return "b-" and 8 hex digits over how the weights are used, what tokens text becomes, and
    what prompts the chat template writes."""
    found = {
        "compute": _compute_fields(config),
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "end": tokenizer.eos_token,
        "tokens": tokenizer(_probe_text(tokenizer), add_special_tokens=False)["input_ids"],
        "prompts": list(_probe_prompts(tokenizer)),
    }
    return f"b-{hashlib.sha256(json.dumps(found).encode()).hexdigest()[:8]}"


def describe_difference(before: str, now: str) -> str:
    """Return in words what differs between two identities, `Base.identity` of each."""
    weights = before.partition(".")[0], now.partition(".")[0]
    if weights[0] != weights[1]:
        return f"other weights, {weights[1]} instead of {weights[0] or 'unknown ones'}"
    return f"the same weights {weights[1]}, with another configuration, tokenizer or chat template"


def _compute_fields(config: PreTrainedConfig) -> dict[str, Any]:
    found = {name: getattr(config, name, None) for name in COMPUTE_FIELDS}
    rope = getattr(config, "rope_parameters", None) or {}
    return found | {name: rope.get(name) for name in ROPE_FIELDS}


def _probe_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return text of many scripts, and 512 words of the vocabulary, which show what merges do."""
    step = max(1, len(tokenizer) // 512)
    return PROBE_TEXT + " ".join(tokenizer.decode([id]) for id in range(0, len(tokenizer), step))


def _probe_prompts(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield each probe chat as the template writes it, and the error's type where it refuses."""
    template = _NO_CLOCK + chat_template(tokenizer)
    for chat in PROBE_CHATS:
        for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
            try:
                yield str(
                    tokenizer.apply_chat_template(
                        chat,
                        chat_template=template,
                        tokenize=False,
                        add_generation_prompt=True,
                        **options,
                    )
                )
            except (TemplateError, ValueError, TypeError) as error:
                yield type(error).__name__
