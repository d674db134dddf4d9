"""Writes the adapter with which a base begins: untrained, and equal to the base."""

import hashlib
import math
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from chatbot.model.adapter import WEIGHTS_FILE, AdapterError, verify_adapter, write_manifest
from chatbot.model.base import Base
from chatbot.model.lora import PEFT_PREFIX, RANK, lora_config, target_modules
from feedback.errors import first_line
from feedback.publish import publish_folder


def write_untrained(base: Base, out: Path) -> Path:
    """Write adapter 0, equal to the base, to `out/<id>/` with its manifest; return that folder.

    A is drawn as PEFT draws it, with the base's identity as the seed, and B is zero: the same
    base has the same id, and another base of the same shape another one.
    """
    seed = int.from_bytes(hashlib.sha256(base.identity.encode()).digest()[:7])
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (inputs, outputs) in target_modules(base.model).items():
        bound = 1 / math.sqrt(inputs)
        a = (torch.rand(RANK, inputs, generator=generator) * 2 - 1) * bound
        weights[f"{PEFT_PREFIX}{name}.lora_A.weight"] = a
        weights[f"{PEFT_PREFIX}{name}.lora_B.weight"] = torch.zeros(outputs, RANK)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=out) as scratch:
        draft = Path(scratch) / "adapter"
        draft.mkdir()
        try:
            save_file(weights, draft / WEIGHTS_FILE, metadata={"format": "pt"})
        except SafetensorError as error:
            raise AdapterError(
                f"Cannot write {draft}: {first_line(error)}. Free some space."
            ) from error
        config = lora_config(base)
        config.inference_mode = True
        config.save_pretrained(draft)
        final = out / write_manifest(draft, base)
        return publish_folder(draft, final, lambda folder: verify_adapter(folder, base))
