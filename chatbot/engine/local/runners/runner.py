"""What a batch asks of a model: one step for many streams, and a cache of what they have read.

Three paths do it: transformers' own forward (`forward`), and for the Llama family a fast one in
torch (`fast`) and one over our own kernels, also in eight bits (`native`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

if TYPE_CHECKING:
    from chatbot.engine.local.runners.transformers_runner import Forward


@dataclass(frozen=True)
class Part:
    """Tokens that one row reads in a step, from position `start` on."""

    row: int
    ids: Sequence[int]
    start: int
    adapter: str | None
    """None for the base."""
    told: int = 1
    """After how many of the tokens, the last ones, the logits are wanted."""

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.ids)


class Cache(Protocol):
    """Keys and values of the streams, one row each. Rows in use are kept at the front."""

    @property
    def bytes(self) -> int:
        """Memory of all rows."""
        ...

    def read(self, row: int, length: int) -> list[Any]:
        """The first `length` positions of a row: pieces with `nbytes`, which no step changes."""
        ...

    def write(self, row: int, states: list[Any], length: int) -> None:
        """Put the first `length` positions of what `read` gave into a row."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first `length` positions of one row in another's place."""
        ...

    def clear(self, row: int) -> None:
        """Empty a row that may hold NaN: even masked it would spoil whoever comes after."""
        ...

    def wipe(self) -> None:
        """Empty all rows."""
        ...

    def release(self) -> None:
        """Let go of all memory: another path may keep another type."""
        ...


class Path(Protocol):
    """One step of a model over the rows of its cache."""

    name: str
    """plain, fast, native or int8."""
    parameters: int

    @property
    def cpu(self) -> bool:
        """Whether it computes on the CPU."""
        ...

    @property
    def cache(self) -> Cache:
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

    def read(self, parts: Sequence[Part]) -> torch.Tensor:
        """Read the parts, one at most of each row and in the rows' order; the logits [told,
        vocabulary] after the last tokens of each. They hold until the next step.
        """
        ...

    def drop(self, adapter: str) -> None:
        """Forget an adapter that no row speaks with; between two steps only."""
        ...

    def apart(self, slots: int, length: int) -> Self:
        """The same path over an empty cache of its own."""
        ...

    def take(self, threads: int) -> None:
        """Compute on so many CPU threads from now on; no stream may be running."""
        ...

    def plain(self) -> "Forward":
        """The path through transformers' own forward, which any other is held against."""
        ...

    def give_back(self) -> None:
        """Leave the model as it was; the path is over."""
        ...
