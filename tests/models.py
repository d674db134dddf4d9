"""Tiny models, tokenizers and adapters with random weights, written to a folder by the tests.

Weights are drawn wide, so that greedy answers differ between prompts and adapters and the best
token leads clearly.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from chatbot.model import lora
from chatbot.model.base import Base, load_base

Family = Literal["llama", "qwen2", "qwen3", "gpt2"]
FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "qwen3", "gpt2")
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{{ '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = """When do you open? We open at nine and close at six, from Monday to Saturday.
Where is my order? Your order left the warehouse yesterday; the parcel arrives tomorrow.
Can I return the shoes? Yes, within thirty days, and the return is free of charge.
Hello, how can I help you today? I don't know that, but I can ask somebody who does.
Größe, Straße, naïve café, 漢字, 日本語, emoji 🙂🎉, roles: system user assistant.
"""


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[END, START, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


def write_tokenizer(folder: Path, *, template: bool = True) -> Path:
    """A byte-level BPE of 384 tokens, ChatML with generation marks unless `template` is off."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(_tokenizer()),
        eos_token=STOP if template else END,
        pad_token=END if template else None,
        clean_up_tokenization_spaces=False,
    )
    if template:
        tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


def write_model(
    folder: Path, family: Family = "llama", *, seed: int = 0, tokenizer: bool = True, **config: Any
) -> Path:
    """A model of about 100k parameters in the shape of `family`, with a tokenizer beside it."""
    torch.manual_seed(seed)
    model = _build(family, config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder, template=family != "gpt2")
    return folder


def _build(family: Family, changes: dict[str, Any]) -> PreTrainedModel:
    common: dict[str, Any] = {"vocab_size": 384, "initializer_range": 0.3}
    common |= {"bos_token_id": None, "eos_token_id": None}
    if family == "gpt2":
        sizes = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 512}
        return GPT2LMHeadModel(GPT2Config(**common | sizes | changes))
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    if family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common | sizes | changes))
        for name, bias in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(bias, std=0.3)
        return model
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**common | sizes | {"head_dim": 16} | changes))
    return LlamaForCausalLM(LlamaConfig(**common | sizes | changes))


def misleading_base(folder: Path) -> Base:
    """A base with a hook that its own forward runs and no other path knows of."""
    base = load_base(str(write_model(folder)))
    base.model.model.layers[0].register_forward_hook(lambda *call: 2 * call[2])
    return base


def write_adapter(out: Path, base: Base, *, seed: int = 1, strength: float = 0.3) -> Path:
    """An adapter with random, clearly felt weights, as training would leave it."""
    drafts = out / f".drafts-{seed}"  # an adapter 0 in `out` is not the one that is reweighed
    folder = reweigh(lora.untrained(base, drafts), base, seed, strength)
    folder = folder.rename(out / folder.name)
    drafts.rmdir()
    return folder


def reweigh(folder: Path, base: Base, seed: int, strength: float) -> Path:
    """Give an adapter's B matrices random values, then a manifest and the name that fits."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    chance = torch.Generator().manual_seed(seed)
    for name, value in weights.items():
        if "lora_B" in name:
            weights[name] = torch.randn(value.shape, generator=chance) * strength
    save_file(weights, file, metadata={"format": "pt"})
    return folder.rename(folder.parent / lora.write_manifest(folder, base))
