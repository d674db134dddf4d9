"""What ended streams leave behind: turn 20 of a conversation reads what is new in it.

Keys and values depend on every weight, so an entry serves only the adapter that computed it.
"""

from dataclasses import dataclass

import torch

KVStates = list[torch.Tensor]
"""Keys and values, layer by layer, each [heads, positions, dim]; see `SlotCache.copy_row`."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens and what the model computed for them."""

    adapter: str
    token_ids: torch.Tensor
    states: KVStates

    @property
    def nbytes(self) -> int:
        """Memory of the states."""
        return sum(state.nbytes for state in self.states)

    def common_length(self, token_ids: torch.Tensor) -> int:
        """How many tokens both begin with."""
        length = min(len(token_ids), len(self.token_ids))
        differ = (self.token_ids[:length] != token_ids[:length]).nonzero()
        return int(differ[0]) if len(differ) else length


class PrefixCache:
    """Up to `limit` bytes of prefixes; the one that was of no use for longest leaves first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: list[Prefix] = []
        """The most recently used last."""

    def match_prefix(self, adapter: str, token_ids: torch.Tensor) -> tuple[int, KVStates]:
        """How many tokens of `ids` this adapter has read before, and their states."""
        best = max(
            self._of_adapter(adapter), key=lambda kept: kept.common_length(token_ids), default=None
        )
        if best is None or (length := best.common_length(token_ids)) == 0:
            return 0, []
        self._entries.remove(best)
        self._entries.append(best)
        return length, best.states

    def insert(self, prefix: Prefix) -> None:
        """Remember it; shorter ones that it contains leave."""
        if prefix.nbytes > self.max_bytes:
            return
        self._evict(
            [
                old
                for old in self._of_adapter(prefix.adapter)
                if old.common_length(prefix.token_ids) == len(old.token_ids)
            ]
        )
        self._entries.append(prefix)
        self.nbytes += prefix.nbytes
        while self.nbytes > self.max_bytes:
            self._evict(self._entries[:1])

    def drop_adapter(self, adapter: str) -> None:
        """Forget everything of an adapter."""
        self._evict(self._of_adapter(adapter))

    def _of_adapter(self, adapter: str) -> list[Prefix]:
        return [kept for kept in self._entries if kept.adapter == adapter]

    def _evict(self, gone: list[Prefix]) -> None:
        for prefix in gone:
            self._entries.remove(prefix)
            self.nbytes -= prefix.nbytes
