"""What ended streams leave behind: turn 20 of a conversation reads what is new in it.

Keys and values depend on every weight, so an entry serves only the adapter that computed it.
"""

from dataclasses import dataclass

import torch

States = list[torch.Tensor]
"""Keys and values, layer by layer, each [heads, positions, dim]; see `SlotCache.copy_row`."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens and what the model computed for them."""

    adapter: str
    ids: torch.Tensor
    states: States

    @property
    def bytes(self) -> int:
        """Memory of the states."""
        return sum(state.nbytes for state in self.states)

    def common(self, ids: torch.Tensor) -> int:
        """How many tokens both begin with."""
        length = min(len(ids), len(self.ids))
        differ = (self.ids[:length] != ids[:length]).nonzero()
        return int(differ[0]) if len(differ) else length


class Prefixes:
    """Up to `limit` bytes of prefixes; the one that was of no use for longest leaves first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: list[Prefix] = []
        """The most recently used last."""

    def longest(self, adapter: str, ids: torch.Tensor) -> tuple[int, States]:
        """How many tokens of `ids` this adapter has read before, and their states."""
        best = max(self._of(adapter), key=lambda kept: kept.common(ids), default=None)
        if best is None or (length := best.common(ids)) == 0:
            return 0, []
        self._kept.remove(best)
        self._kept.append(best)
        return length, best.states

    def keep(self, new: Prefix) -> None:
        """Remember it; shorter ones that it contains leave."""
        if new.bytes > self.limit:
            return
        self._forget([old for old in self._of(new.adapter) if old.common(new.ids) == len(old.ids)])
        self._kept.append(new)
        self.bytes += new.bytes
        while self.bytes > self.limit:
            self._forget(self._kept[:1])

    def drop(self, adapter: str) -> None:
        """Forget everything of an adapter."""
        self._forget(self._of(adapter))

    def _of(self, adapter: str) -> list[Prefix]:
        return [kept for kept in self._kept if kept.adapter == adapter]

    def _forget(self, gone: list[Prefix]) -> None:
        for prefix in gone:
            self._kept.remove(prefix)
            self.bytes -= prefix.bytes
