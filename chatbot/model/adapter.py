"""Checks adapter folders before their weights are believed, and names them by their content.

    adapter = verify_adapter(Path("home/adapters/a-3f9c02b1d7e4"), base)

An adapter is a folder as PEFT writes it (`adapter_model.safetensors`, `adapter_config.json`) with
a `manifest.json`; its id is the hash of its content. Every file is read once: the bytes that were
hashed and checked are the bytes that are used, whatever happens to the file after that.
"""

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from chatbot.model.base import Base
from chatbot.model.fingerprint import describe_difference
from chatbot.model.lora import PEFT_PREFIX, RANK, target_modules
from feedback.errors import TalkbackError, describe_os_error
from feedback.publish import replace_file

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1

REQUIRED_CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}
"""What the engine computes; an adapter that asks for anything else would be served wrongly."""

LoraMatrices = dict[str, tuple[torch.Tensor, torch.Tensor, float]]
"""Module name in the base model -> A [rank, in], B [out, rank], scale."""


class AdapterError(TalkbackError):
    """Says what makes an adapter unfit to be served; the message names what differs."""


@dataclass(frozen=True)
class VerifiedAdapter:
    """Holds a verified adapter: its id, and the matrices exactly as they were checked."""

    id: str
    folder: Path
    rank: int
    manifest: dict[str, Any]
    matrices: LoraMatrices


# -- Names


def adapter_id(folder: Path) -> str:
    """Return the id that the adapter's content has, whatever its manifest says."""
    return content_id(_read_json(folder, CONFIG_FILE), _read_weights(folder))


def content_id(config: dict[str, Any], weights: bytes) -> str:
    """Return "a-" and 12 hex digits over the weights and what of the config changes their meaning.

    `weights` are the bytes of the safetensors file.
    """
    essentials = {key: config.get(key) for key in sorted({*REQUIRED_CONFIG, "r", "lora_alpha"})}
    essentials["target_modules"] = sorted(config.get("target_modules") or ())
    total = hashlib.sha256(json.dumps(essentials, sort_keys=True).encode())
    total.update(hashlib.sha256(weights).digest())
    return f"a-{total.hexdigest()[:12]}"


def write_manifest(folder: Path, base: Base, **fields: Any) -> str:
    """Write `manifest.json` {id, base, base_revision, fingerprint, identity, format: 1, **fields}.

    Returns the id.
    """
    manifest = {
        "id": adapter_id(folder),
        "base": base.name,
        "base_revision": base.revision,
        "fingerprint": base.fingerprint,
        "identity": base.identity,
        "format": MANIFEST_FORMAT,
        **fields,
    }
    replace_file(folder / MANIFEST_FILE, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return str(manifest["id"])


def is_of_base(manifest: dict[str, Any], base: Base) -> bool:
    """Tell whether an adapter's manifest names this base. Older ones name the weights alone."""
    identity = manifest.get("identity", base.identity)
    return (manifest.get("fingerprint"), identity) == (base.fingerprint, base.identity)


# -- The checks


def verify_adapter(folder: Path, base: Base, expected_id: str | None = None) -> VerifiedAdapter:
    """Check files, hash, base, targets, shapes and finite values; nothing live is touched.

    With `expected_id` the folder has to hold that adapter. Raises AdapterError.
    """
    if not os.path.lexists(folder):
        raise AdapterError(f"There is no adapter folder {folder}.")
    manifest, config = _read_json(folder, MANIFEST_FILE), _read_json(folder, CONFIG_FILE)
    weights = _read_weights(folder)
    _check_id(folder, manifest, content_id(config, weights))
    _check_base(folder, manifest, base)
    _check_config(folder, config)
    tensors = _parse_weights(folder, weights)
    _check_shapes(folder, tensors, base)
    _check_finite(folder, tensors)
    id = str(manifest["id"])
    if expected_id is not None and id != expected_id:
        raise AdapterError(f"{folder} holds {id}, not {expected_id}.")
    return VerifiedAdapter(id, folder, int(config["r"]), manifest, _matrices(config, tensors))


def _check_id(folder: Path, manifest: dict[str, Any], found: str) -> None:
    if manifest.get("format") != MANIFEST_FORMAT:
        raise AdapterError(
            f"{folder}: manifest format {manifest.get('format')!r}, "
            f"this version reads {MANIFEST_FORMAT}."
        )
    named = manifest.get("id")
    if found != named:
        raise AdapterError(
            f"{folder}: the content hashes to {found}, its manifest says {named}. It was changed "
            "or damaged; copy it again or train anew."
        )
    if re.fullmatch(r"a-[0-9a-f]{12}", folder.name) and folder.name != found:
        raise AdapterError(f"{folder}: the content is that of {found}. Rename or copy it again.")


def _check_base(folder: Path, manifest: dict[str, Any], base: Base) -> None:
    if not is_of_base(manifest, base):
        identity = str(manifest.get("identity") or manifest.get("fingerprint"))
        raise AdapterError(
            f"{folder}: trained on {manifest.get('base')}, but the base here, {base.name}, has "
            f"{describe_difference(identity, base.identity)}. Serve it on its own base."
        )


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    for key, expected in REQUIRED_CONFIG.items():
        value = config.get(key)
        if (value or None) != (expected or None):
            raise AdapterError(f"{folder}: {key} is {value!r}, only {expected!r} is served.")
    if config.get("r") != RANK:
        raise AdapterError(f"{folder}: rank {config.get('r')}, only {RANK} is served.")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"{folder}: lora_alpha is {alpha!r}, which is not a number.")


def _check_shapes(folder: Path, tensors: dict[str, torch.Tensor], base: Base) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in target_modules(base.model).items():
        expected[f"{PEFT_PREFIX}{name}.lora_A.weight"] = (RANK, inputs)
        expected[f"{PEFT_PREFIX}{name}.lora_B.weight"] = (outputs, RANK)
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if missing := sorted(expected.keys() - found.keys()):
        raise AdapterError(f"{folder}: {len(missing)} matrices are missing, {missing[0]} first.")
    if extra := sorted(found.keys() - expected.keys()):
        raise AdapterError(f"{folder}: {extra[0]} belongs to no module of {base.name}.")
    for key, size in expected.items():
        if found[key] != size:
            raise AdapterError(f"{folder}: {key} is {found[key]}, the base needs {size}.")


def _check_finite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{folder}: {key} holds NaN or infinity. Train anew.")


# -- Reading


def _matrices(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LoraMatrices:
    scale = config["lora_alpha"] / config["r"]
    keys = [key for key in tensors if key.endswith(".lora_A.weight")]
    names = [key.removesuffix(".lora_A.weight") for key in keys]
    return {
        name.removeprefix(PEFT_PREFIX): (
            tensors[f"{name}.lora_A.weight"],
            tensors[f"{name}.lora_B.weight"],
            scale,
        )
        for name in names
    }


def _read_weights(folder: Path) -> bytes:
    try:
        return (folder / WEIGHTS_FILE).read_bytes()
    except FileNotFoundError as e:
        raise AdapterError(f"{folder} has no {WEIGHTS_FILE}. Only safetensors are loaded.") from e
    except OSError as e:
        raise AdapterError(f"An adapter cannot be read: {describe_os_error(e)}.") from e


def _parse_weights(folder: Path, weights: bytes) -> dict[str, torch.Tensor]:
    try:
        return dict(safetensors.torch.load(weights))
    except SafetensorError as e:
        raise AdapterError(f"{folder / WEIGHTS_FILE} cannot be read: {e}. Copy it again.") from e


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise AdapterError(f"{folder} has no {name}. Copy the whole folder.") from e
    except OSError as e:
        raise AdapterError(f"An adapter cannot be read: {describe_os_error(e)}.") from e
    except ValueError as e:
        raise AdapterError(f"{folder / name} is not JSON: {e}. Copy it again.") from e
    if not isinstance(value, dict):
        raise AdapterError(f"{folder / name} is not a JSON object. Copy it again.")
    return value
