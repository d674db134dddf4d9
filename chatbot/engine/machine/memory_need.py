"""Estimates how much memory a step needs before anything heavy is loaded, and refuses what cannot
fit; the numbers come from the base's config.json and the headers of its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import AutoConfig

from chatbot.engine.machine.hardware import available_bytes
from chatbot.engine.settings import EngineSettings
from chatbot.model.base import DType, choose_dtype, count_parameters
from feedback.errors import TalkbackError


class MemoryNeedError(TalkbackError):
    """Reports a step that needs more memory than there can be."""


@dataclass(frozen=True)
class ModelSize:
    """Holds the sizes of a base from which its need of memory follows, counts of numbers."""

    parameters: int
    parameter_bytes: int
    """Bytes of one number, as it is loaded."""
    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    """Numbers of the keys of one token in one layer."""
    vocabulary: int
    context_length: int | None
    """Most tokens that the model was made for, where its config says."""

    @classmethod
    def read(cls, folder: Path, dtype: DType = "auto") -> "ModelSize":
        """Read the sizes of the base in a folder; BaseError for damaged weights."""
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            parameters=count_parameters(folder),
            parameter_bytes=choose_dtype(folder, dtype).itemsize,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            kv_width=head_dim * (getattr(config, "num_key_value_heads", None) or heads),
            vocabulary=config.vocab_size,
            context_length=getattr(config, "max_position_embeddings", None),
        )

    @property
    def weights(self) -> int:
        """Return the bytes of the weights."""
        return self.parameters * self.parameter_bytes

    def cache(self, tokens: int) -> int:
        """Return the bytes of the keys and values of so many tokens."""
        return 2 * tokens * self.layers * self.kv_width * self.parameter_bytes


class MemoryPart(NamedTuple):
    """Holds one part of a need, in bytes: what it may come to, and what it surely does."""

    text: str
    """What it is for, as "{} for weights"."""
    most: int
    least: int


@dataclass(frozen=True)
class MemoryNeed:
    """Holds what a step needs of memory."""

    step: str
    """What is done, as "Serving org/model"."""
    remedy: str
    parts: Sequence[MemoryPart]

    def describe(self, available: int | None = None) -> str:
        """Return the need in one line, which warns if the machine may be too small.

        Raises MemoryNeedError where the least is more than the machine can give at all.
        """
        least, most = (
            sum(getattr(part, name) for part in self.parts) for name in ("least", "most")
        )
        possible = available_bytes(swap=True) if available is None else available
        if least > possible:
            raise MemoryNeedError(
                f"{self.step} needs at least {_size(least)} of memory, and {_size(possible)} can "
                f"be had. {self.remedy}"
            )
        free = available_bytes() if available is None else available
        parts = ", ".join(part.text.format(_size(part.most)) for part in self.parts if part.most)
        line = f"{self.step} takes {parts}; {_size(free)} of memory can be had"
        return line if most <= free else f"{line}. It may run out. {self.remedy}"


def serving_need(name: str, folder: Path, settings: EngineSettings) -> MemoryNeed:
    """Return what it takes to serve the base in a folder on this machine's CPU."""
    size, workers = ModelSize.read(folder), settings.workers or 1
    length = min(settings.max_length, size.context_length or settings.max_length)
    weights, copy = size.weights, size.parameters if settings.kind == "int8" else 0
    streams = f"up to {{}} for {settings.slots} streams of {length} tokens"
    parts = [
        MemoryPart("{} for weights", weights, weights),
        MemoryPart("{} for their copy in eight bits", copy, 0),
        MemoryPart(streams, size.cache(settings.slots * length), 0),
        MemoryPart("up to {} for prefixes", settings.prefix_mb * 2**20, 0),
    ]
    return MemoryNeed(
        f"Serving {name}",
        "Take a smaller base, fewer [engine] workers or slots, or a lower max_length.",
        [MemoryPart(text, workers * most, workers * least) for text, most, least in parts],
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
