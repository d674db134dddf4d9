"""Names what was loaded: a folder by its bytes, weights by a sample of their values."""

import hashlib
from pathlib import Path

import torch
from transformers import PreTrainedModel

from chatbot.model.meta import NamedTensors


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
