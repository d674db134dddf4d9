"""Estimates how much memory a step needs before anything heavy is loaded, and refuses what cannot
fit; the numbers come from the base's config.json and the headers of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig

from chatbot.engine.hardware import available_bytes
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
        )

    @property
    def weights(self) -> int:
        """Return the bytes of the weights."""
        return self.parameters * self.parameter_bytes

    def cache(self, tokens: int) -> int:
        """Return the bytes of the keys and values of so many tokens."""
        return 2 * tokens * self.layers * self.kv_width * self.parameter_bytes


@dataclass(frozen=True)
class MemoryNeed:
    """Holds what a step needs of memory, by part, in bytes."""

    step: str
    """What is done, as "Serving org/model"."""
    remedy: str
    certain: Mapping[str, int]
    """What is needed from the first moment on."""
    growing: Mapping[str, int] = field(default_factory=dict)
    """What may be needed besides, at the busiest moment; an estimate."""

    def describe(self, available: int | None = None) -> str:
        """Return the need in one line, which warns if the machine may be too small.

        Raises MemoryNeedError where what is certain is more than the machine can give at all.
        """
        fixed, most = sum(self.certain.values()), sum(self.growing.values())
        possible = available_bytes(swap=True) if available is None else available
        if fixed > possible:
            raise MemoryNeedError(
                f"{self.step} needs {_parts(self.certain)} of memory, and {_size(possible)} can be "
                f"had. {self.remedy}"
            )
        free = available_bytes() if available is None else available
        line = f"{self.step} needs {_parts({**self.certain, **self.growing})} of memory"
        line += f"; {_size(free)} can be had"
        return line if fixed + most <= free else f"{line}. It may run out. {self.remedy}"


def serving_need(name: str, folder: Path, settings: EngineSettings) -> MemoryNeed:
    """Return what it takes to serve the base in a folder on this machine's CPU."""
    size, workers = ModelSize.read(folder), settings.workers or 1
    length = min(settings.max_length, _context_length(folder))
    growing = {
        "{} for their copy in eight bits": size.parameters if settings.kind == "int8" else 0,
        f"up to {{}} for {settings.slots} streams of {length} tokens": size.cache(
            settings.slots * length
        ),
        "{} for prefixes": settings.prefix_mb * 2**20,
    }
    return MemoryNeed(
        f"Serving {name}",
        "Take a smaller base, fewer [engine] workers or slots, or a lower max_length.",
        {"{} for weights": workers * size.weights},
        {text: workers * part for text, part in growing.items() if part},
    )


def _context_length(folder: Path) -> int:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _parts(parts: Mapping[str, int]) -> str:
    return ", ".join(text.format(_size(size)) for text, size in parts.items())


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
