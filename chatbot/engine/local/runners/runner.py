"""What a batch asks of a model: one step for many streams, and a cache of what they have read.

Three paths do it: transformers' own forward (`forward`), and for the Llama family a fast one in
torch (`fast`) and one over our own kernels, also in eight bits (`native`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

if TYPE_CHECKING:
    from chatbot.engine.local.runners.transformers_runner import TransformersRunner


@dataclass(frozen=True)
class Chunk:
    """Tokens that one row reads in a step, from position `start` on."""

    row: int
    ids: Sequence[int]
    start: int
    adapter: str | None
    """None for the base."""
    num_logits: int = 1
    """After how many of the tokens, the last ones, the logits are wanted."""

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.ids)


class KVCache(Protocol):
    """Keys and values of the streams, one row each. Rows in use are kept at the front."""

    @property
    def bytes(self) -> int:
        """Memory of all rows."""
        ...

    def copy_row(self, row: int, length: int) -> list[Any]:
        """The first `length` positions of a row: pieces with `nbytes`, which no step changes."""
        ...

    def restore_row(self, row: int, states: list[Any], length: int) -> None:
        """Put the first `length` positions of what `read` gave into a row."""
        ...

    def move_row(self, source: int, target: int, length: int) -> None:
        """Put the first `length` positions of one row in another's place."""
        ...

    def zero_row(self, row: int) -> None:
        """Empty a row that may hold NaN: even masked it would spoil whoever comes after."""
        ...

    def zero_all(self) -> None:
        """Empty all rows."""
        ...

    def free(self) -> None:
        """Let go of all memory: another path may keep another type."""
        ...


class ModelRunner(Protocol):
    """One step of a model over the rows of its cache."""

    name: str
    """plain, fast, native or int8."""
    parameters: int

    @property
    def cpu(self) -> bool:
        """Whether it computes on the CPU."""
        ...

    @property
    def cache(self) -> KVCache:
        """What its rows have read."""
        ...

    @property
    def extra_bytes(self) -> int:
        """Memory beside the model's weights."""
        ...

    @property
    def adapter_bytes(self) -> int:
        """Memory of all adapters, in every layout they are held in."""
        ...

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Read the parts, one at most of each row and in the rows' order; the logits [told,
        vocabulary] after the last tokens of each. They hold until the next step.
        """
        ...

    def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter that no row speaks with; between two steps only."""
        ...

    def with_own_cache(self, slots: int, length: int) -> Self:
        """The same path over an empty cache of its own."""
        ...

    def set_threads(self, threads: int) -> None:
        """Compute on so many CPU threads from now on; no stream may be running."""
        ...

    def reference(self) -> "TransformersRunner":
        """The path through transformers' own forward, which any other is held against."""
        ...

    def restore_weights(self) -> None:
        """Leave the model as it was; the path is over."""
        ...
