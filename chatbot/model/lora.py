"""Defines the one LoRA shape that every adapter has: rank, scale and target modules.

LoRA: https://arxiv.org/abs/2106.09685
"""

from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from chatbot.model.base import Base

if TYPE_CHECKING:
    from peft import LoraConfig

RANK = 16
ALPHA = 32

PEFT_PREFIX = "base_model.model."
"""What PEFT writes before a module's name in an adapter's weights."""


def target_modules(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return every linear module but the head: its name -> (input size, output size)."""
    head = model.get_output_embeddings()
    sizes = {}
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            sizes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            sizes[name] = (module.weight.shape[0], module.weight.shape[1])
    return sizes


def lora_config(base: Base) -> "LoraConfig":
    """Return PEFT's config of this shape: rank 16, alpha 32, no dropout, all linear modules but the
    head."""
    from peft import LoraConfig

    return LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in target_modules(base.model)}),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in base.model.modules()),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.name,
    )
