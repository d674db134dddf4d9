"""Reuses what ended streams have computed: turn 20 of a conversation computes only what is new.

Keys and values depend on every weight, so an entry serves only the adapter that computed it.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from chatbot.engine.local.runners.runner import KVCache

KVStates = list[Any]
"""Keys and values of a prefix as the cache copies them; see `KVCache.copy_row`."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """Holds tokens and the keys and values that an adapter computed for them."""

    adapter: str
    token_ids: torch.Tensor
    states: KVStates
    """Empty while the keys and values are still in their row of the cache only."""

    @property
    def nbytes(self) -> int:
        """Return the memory of the states in bytes."""
        return sum(state.nbytes for state in self.states)

    def common_length(self, token_ids: torch.Tensor) -> int:
        """Return how many tokens both begin with."""
        length = min(len(token_ids), len(self.token_ids))
        differ = (self.token_ids[:length] != token_ids[:length]).nonzero()
        return int(differ[0]) if len(differ) else length


class PrefixCache:
    """Keeps prefixes of up to `max_bytes` bytes and evicts the least recently used first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: list[Prefix] = []
        """The most recently used last."""

    def match_prefix(self, adapter: str, token_ids: torch.Tensor) -> tuple[int, KVStates]:
        """Return how many first tokens of `token_ids` the adapter has computed, and the states."""
        entries = self._of_adapter(adapter)
        best = max(entries, key=lambda entry: entry.common_length(token_ids), default=None)
        if best is None or (length := best.common_length(token_ids)) == 0:
            return 0, []
        self._entries.remove(best)
        self._entries.append(best)
        return length, best.states

    def insert(self, prefix: Prefix) -> None:
        """Keep a prefix and evict shorter ones that it begins with; drop one above `max_bytes`."""
        if prefix.nbytes > self.max_bytes:
            return
        entries = self._of_adapter(prefix.adapter)
        self._evict([e for e in entries if e.common_length(prefix.token_ids) == len(e.token_ids)])
        self._entries.append(prefix)
        self.nbytes += prefix.nbytes
        while self.nbytes > self.max_bytes:
            self._evict(self._entries[:1])

    def drop_adapter(self, adapter: str) -> None:
        """Evict all prefixes of an adapter."""
        self._evict(self._of_adapter(adapter))

    def clear(self) -> None:
        """Evict all prefixes."""
        self._evict([*self._entries])

    def _of_adapter(self, adapter: str) -> list[Prefix]:
        return [entry for entry in self._entries if entry.adapter == adapter]

    def _evict(self, entries: list[Prefix]) -> None:
        for prefix in entries:
            self._entries.remove(prefix)
            self.nbytes -= prefix.nbytes


class PrefixReuse:
    """Lets new sequences begin with what ended ones have computed.

    A stream that ends is copied to `cache`, except where its row becomes the first free one: the
    next sequence enters just there, and in a conversation of one person at a time that is the next
    turn. Its keys and values then stay in the row and nothing is copied. The copy is deferred until
    the row is needed for something else or the engine is idle.

    The key/value cache is a parameter of each method, for the model runner may be replaced.
    """

    def __init__(self, max_bytes: int) -> None:
        self.cache = PrefixCache(max_bytes)
        self._free_row: Prefix | None = None
        """What the first free row still holds of its last stream."""

    @property
    def has_deferred_copy(self) -> bool:
        """Tell whether the next sequence might have to wait for a copy of the free row."""
        return self._free_row is not None and not self._free_row.states

    def copy_deferred(self, kv_cache: KVCache, row: int) -> None:
        """Copy what the first free `row` holds to `cache`, if that is still to be done."""
        if self._free_row is not None and not self._free_row.states:
            self._free_row = self._copy(kv_cache, row, self._free_row)

    def restore(self, kv_cache: KVCache, row: int, adapter: str, prompt_ids: list[int]) -> int:
        """Fill the free `row` with the longest known prefix of a prompt; return its length.

        The last token of the prompt is always computed anew, for its logits give the first token.
        """
        token_ids = torch.tensor(prompt_ids[:-1])
        in_row = self._take_free_row(kv_cache, row, adapter, token_ids)
        length, states = self.cache.match_prefix(adapter, token_ids)
        if length <= in_row:
            return in_row
        kv_cache.restore_row(row, states, length)
        return length

    def save(
        self, kv_cache: KVCache, row: int, adapter: str, token_ids: list[int], *, becomes_free: bool
    ) -> None:
        """Keep what a stream that ends has computed: in its row if that `becomes_free` first."""
        if not self.cache.max_bytes:
            return
        prefix = Prefix(adapter, torch.tensor(token_ids), [])
        if becomes_free:
            self._free_row = prefix
        else:
            self._copy(kv_cache, row, prefix)

    def forget_free_row(self) -> None:
        """Stop reusing the first free row: another one takes its place, or its content is void."""
        self._free_row = None

    def drop_adapter(self, adapter: str) -> None:
        """Forget all that an adapter has computed."""
        self.cache.drop_adapter(adapter)
        if self._free_row is not None and self._free_row.adapter == adapter:
            self._free_row = None

    def clear(self) -> None:
        """Forget everything."""
        self.cache.clear()
        self._free_row = None

    def _take_free_row(
        self, kv_cache: KVCache, row: int, adapter: str, token_ids: torch.Tensor
    ) -> int:
        """Return how many of the tokens the row holds already, before others overwrite the rest."""
        prefix = self._free_row
        if prefix is None:
            return 0
        common = prefix.common_length(token_ids) if prefix.adapter == adapter else 0
        # Whoever goes on from here loses nothing: what is new follows what is there. Otherwise the
        # end of the last stream is overwritten, and its own next turn would miss it. One token
        # less is no loss: a repeated prompt computes its last token anew.
        if common < len(prefix.token_ids) - 1:
            self.copy_deferred(kv_cache, row)
        self._free_row = None
        return common

    def _copy(self, kv_cache: KVCache, row: int, prefix: Prefix) -> Prefix:
        copied = replace(prefix, states=kv_cache.copy_row(row, len(prefix.token_ids)))
        self.cache.insert(copied)
        return copied
