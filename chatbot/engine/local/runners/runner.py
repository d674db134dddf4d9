"""Declares what a model runner does: one forward for many sequences, over their key/value cache.

Three implement it: `transformers_runner` by transformers' own forward, for any causal LM; and for
the Llama family `llama_torch`, in torch, and `llama_cpu`, by our own kernels, also in eight bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch


@dataclass(frozen=True)
class Chunk:
    """Holds the consecutive tokens of one sequence that a forward computes, from position `start`
    on: a piece of its prompt (chunked prefill), or what it decodes."""

    row: int
    """The row of the cache that belongs to the sequence."""
    ids: Sequence[int]
    start: int
    adapter: str | None
    """None for the base."""
    num_logits: int = 1
    """How many tokens, the last ones, get their logits computed."""

    @property
    def end(self) -> int:
        """Return the position after the last token."""
        return self.start + len(self.ids)


class KVCache(Protocol):
    """Keeps keys and values of the sequences, one row each. Rows in use are kept at the front."""

    @property
    def bytes(self) -> int:
        """Return the memory of all rows."""
        ...

    def copy_row(self, row: int, length: int) -> list[Any]:
        """Return a row's first `length` positions, as pieces with `nbytes` that no later forward
        changes."""
        ...

    def restore_row(self, row: int, states: list[Any], length: int) -> None:
        """Write the first `length` positions of what `copy_row` returned into a row."""
        ...

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another."""
        ...

    def zero_row(self, row: int) -> None:
        """Zero a row that may hold NaN: even masked it would spoil the sequence that comes next."""
        ...

    def zero_all(self) -> None:
        """Zero all rows."""
        ...

    def free(self) -> None:
        """Free all memory: another runner may keep another type."""
        ...


class ModelRunner(Protocol):
    """Computes forwards of one model over the rows of its cache."""

    name: str
    """transformers, llama_torch, llama_cpu or int8."""
    parameters: int

    @property
    def cpu(self) -> bool:
        """Tell whether it computes on the CPU."""
        ...

    @property
    def cache(self) -> KVCache:
        """Return the keys and values of the sequences."""
        ...

    @property
    def extra_bytes(self) -> int:
        """Return the memory that it takes beside the model's weights."""
        ...

    @property
    def adapter_bytes(self) -> int:
        """Return the memory of all adapters, in every layout they are held in."""
        ...

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute the chunks, one at most of each row and in the rows' order; return the logits
        [sum of num_logits, vocab] after the last tokens of each. They hold until the next forward.
        """
        ...

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no sequence uses; between two forwards only."""
        ...

    def with_own_cache(self, slots: int, length: int) -> Self:
        """Return the same runner over an empty cache of its own."""
        ...

    def set_threads(self, threads: int) -> None:
        """Compute on so many CPU threads from now on; no sequence may be running."""
        ...

    def reference(self) -> "ModelRunner":
        """Return the runner through transformers' own forward, which any other is checked against.

        It shares the cache and the adapters.
        """
        ...

    def restore_weights(self) -> None:
        """Leave the model as it was; the runner cannot be used any more."""
        ...
