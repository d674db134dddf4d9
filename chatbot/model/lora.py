"""The one LoRA shape of the house, and every check before an adapter's weights are believed.

An adapter is a folder as PEFT writes it (`adapter_model.safetensors`, `adapter_config.json`) with
a `manifest.json`; its id is the hash of its content.
"""

import hashlib
import json
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from chatbot.model.base import Base
from feedback.errors import TalkbackError
from feedback.publish import publish_folder

if TYPE_CHECKING:
    from peft import LoraConfig

RANK = 16
ALPHA = 32

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1

PEFT_PREFIX = "base_model.model."

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
    """The adapter is not fit to be served; the message names what differs."""


@dataclass(frozen=True)
class VerifiedAdapter:
    """A verified adapter folder."""

    id: str
    folder: Path
    rank: int
    manifest: dict[str, Any]


# -- The shape


def target_modules(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Every linear module but the head: its name -> (inputs, outputs)."""
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
    """LoRA r=16, alpha=32, no dropout, on all linear layers but the head."""
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


def write_untrained(base: Base, out: Path) -> Path:
    """Adapter 0, equal to the base: writes `out/<id>/` (manifest included), returns that folder.

    A is drawn as PEFT draws it, with the base's fingerprint for a seed, and B is zero: the same
    base has the same id, and another base of the same shape another one.
    """
    seed = int.from_bytes(hashlib.sha256(base.fingerprint.encode()).digest()[:7])
    chance = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (inputs, outputs) in target_modules(base.model).items():
        bound = 1 / math.sqrt(inputs)
        a = (torch.rand(RANK, inputs, generator=chance) * 2 - 1) * bound
        weights[f"{PEFT_PREFIX}{name}.lora_A.weight"] = a
        weights[f"{PEFT_PREFIX}{name}.lora_B.weight"] = torch.zeros(outputs, RANK)
    out.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=out))
    save_file(weights, draft / WEIGHTS_FILE, metadata={"format": "pt"})
    config = lora_config(base)
    config.inference_mode = True
    config.save_pretrained(draft)
    return publish_folder(draft, out / write_manifest(draft, base))


# -- Names


def adapter_id(folder: Path) -> str:
    """ "a-" and 12 hex digits over the weights and what of the config changes their meaning."""
    config = _json(folder, CONFIG_FILE)
    essentials = {key: config.get(key) for key in sorted({*REQUIRED_CONFIG, "r", "lora_alpha"})}
    essentials["target_modules"] = sorted(config.get("target_modules") or ())
    total = hashlib.sha256(json.dumps(essentials, sort_keys=True).encode())
    try:
        with (folder / WEIGHTS_FILE).open("rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    except FileNotFoundError as e:
        raise AdapterError(f"{folder} has no {WEIGHTS_FILE}. Only safetensors are loaded.") from e
    return f"a-{total.hexdigest()[:12]}"


def write_manifest(folder: Path, base: Base, **fields: Any) -> str:
    """Write `manifest.json` {id, base, base_revision, fingerprint, format: 1, **fields}; the id."""
    manifest = {
        "id": adapter_id(folder),
        "base": base.name,
        "base_revision": base.revision,
        "fingerprint": base.fingerprint,
        "format": MANIFEST_FORMAT,
        **fields,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    return str(manifest["id"])


# -- The checks


def verify(folder: Path, base: Base) -> VerifiedAdapter:
    """Check files, hash, base, targets, shapes and finite values; touches nothing live."""
    if not folder.is_dir():
        raise AdapterError(f"There is no adapter folder {folder}.")
    manifest, config = _json(folder, MANIFEST_FILE), _json(folder, CONFIG_FILE)
    _check_id(folder, manifest)
    _check_base(folder, manifest, base)
    _check_config(folder, config)
    _check_shapes(folder, base)
    _check_finite(folder)
    return VerifiedAdapter(str(manifest["id"]), folder, int(config["r"]), manifest)


def _check_id(folder: Path, manifest: dict[str, Any]) -> None:
    if manifest.get("format") != MANIFEST_FORMAT:
        raise AdapterError(
            f"{folder}: manifest format {manifest.get('format')!r}, "
            f"this version reads {MANIFEST_FORMAT}."
        )
    found, named = adapter_id(folder), manifest.get("id")
    if found != named:
        raise AdapterError(
            f"{folder}: the content hashes to {found}, its manifest says {named}. It was changed "
            "or damaged; copy it again or train anew."
        )
    if re.fullmatch(r"a-[0-9a-f]{12}", folder.name) and folder.name != found:
        raise AdapterError(f"{folder}: the content is that of {found}. Rename or copy it again.")


def _check_base(folder: Path, manifest: dict[str, Any], base: Base) -> None:
    if manifest.get("fingerprint") != base.fingerprint:
        raise AdapterError(
            f"{folder}: trained on {manifest.get('base')} ({manifest.get('fingerprint')}), but "
            f"the base here is {base.name} ({base.fingerprint}). Serve it on its own base."
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


def _check_shapes(folder: Path, base: Base) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in target_modules(base.model).items():
        expected[f"{PEFT_PREFIX}{name}.lora_A.weight"] = (RANK, inputs)
        expected[f"{PEFT_PREFIX}{name}.lora_B.weight"] = (outputs, RANK)
    with _weights(folder) as weights:
        found = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    if missing := sorted(expected.keys() - found.keys()):
        raise AdapterError(f"{folder}: {len(missing)} matrices are missing, {missing[0]} first.")
    if extra := sorted(found.keys() - expected.keys()):
        raise AdapterError(f"{folder}: {extra[0]} belongs to no module of {base.name}.")
    for key, size in expected.items():
        if found[key] != size:
            raise AdapterError(f"{folder}: {key} is {found[key]}, the base needs {size}.")


def _check_finite(folder: Path) -> None:
    with _weights(folder) as weights:
        for key in weights.keys():  # noqa: SIM118
            if not torch.isfinite(weights.get_tensor(key)).all():
                raise AdapterError(f"{folder}: {key} holds NaN or infinity. Train anew.")


def load_matrices(folder: Path) -> LoraMatrices:
    """The adapter's matrices by module name of the base model."""
    config = _json(folder, CONFIG_FILE)
    scale = config["lora_alpha"] / config["r"]
    with _weights(folder) as weights:
        halves = {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118
    names = [key.removesuffix(".lora_A.weight") for key in halves if key.endswith(".lora_A.weight")]
    return {
        name.removeprefix(PEFT_PREFIX): (
            halves[f"{name}.lora_A.weight"],
            halves[f"{name}.lora_B.weight"],
            scale,
        )
        for name in names
    }


def _weights(folder: Path) -> Any:
    try:
        return safe_open(str(folder / WEIGHTS_FILE), "pt")
    except (SafetensorError, FileNotFoundError) as e:
        raise AdapterError(f"{folder / WEIGHTS_FILE} cannot be read: {e}. Copy it again.") from e


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise AdapterError(f"{folder} has no {name}. Copy the whole folder.") from e
    except ValueError as e:
        raise AdapterError(f"{folder / name} is not JSON: {e}. Copy it again.") from e
    if not isinstance(value, dict):
        raise AdapterError(f"{folder / name} is not a JSON object. Copy it again.")
    return value
