"""The one LoRA shape of the house, and every check before an adapter's weights are believed.

An adapter is a folder as PEFT writes it (`adapter_model.safetensors`, `adapter_config.json`) with
a `manifest.json`; its id is the hash of its content.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chatbot.base import Base
from feedback.errors import TalkbackError

if TYPE_CHECKING:
    from peft import LoraConfig

RANK = 16
ALPHA = 32

Tensors = dict[str, tuple[torch.Tensor, torch.Tensor, float]]
"""Module name in the base model -> A [rank, in], B [out, rank], scale."""


class AdapterError(TalkbackError):
    """The adapter is not fit to be served; the message names what differs."""


@dataclass(frozen=True)
class Adapter:
    """A verified adapter folder."""

    id: str
    folder: Path
    rank: int
    manifest: dict[str, Any]


def shape(base: Base) -> "LoraConfig":
    """LoRA r=16, alpha=32, no dropout, on all linear layers but the head."""
    raise NotImplementedError


def untrained(base: Base, out: Path) -> Path:
    """Adapter 0, equal to the base: writes `out/<id>/` (manifest included), returns that folder."""
    raise NotImplementedError


def content_id(folder: Path) -> str:
    """ "a-" and 12 hex digits over the weights and what of the config changes their meaning."""
    raise NotImplementedError


def write_manifest(folder: Path, base: Base, **fields: Any) -> str:
    """Write `manifest.json` {id, base, base_revision, fingerprint, format: 1, **fields}; the id."""
    raise NotImplementedError


def verify(folder: Path, base: Base) -> Adapter:
    """Check files, hash, base, targets, shapes and finite values; touches nothing live."""
    raise NotImplementedError


def tensors(folder: Path) -> Tensors:
    """The adapter's matrices by module name of the base model."""
    raise NotImplementedError
