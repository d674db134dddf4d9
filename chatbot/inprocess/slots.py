"""The key/value cache of many streams: one row a stream, each with a length of its own.

Rows in use are kept together at the front, so that a decode step reads views and copies nothing.
"""

from typing import Any

import torch
from transformers import Cache

BLOCK = 256
"""Positions that storage grows by at least; it doubles, so that growing stays rare."""


class SlotCache(Cache):  # type: ignore[misc]
    """A transformers cache of shape [slots, kv_heads, length, head_dim] a layer.

    Before each forward, `place` says which rows and positions it writes; `update` then returns the
    used prefix of exactly those rows. Memory follows the longest stream so far.
    """

    def __init__(self, slots: int, max_length: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.max_length = max_length
        self._capacity = 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._rows = slice(0)
        self._used, self._tokens = 0, 0
        self._index: tuple[torch.Tensor | slice, ...] = ()

    def place(self, first: int, positions: torch.Tensor, used: int) -> None:
        """The next forward writes positions [rows, tokens] in rows from `first` on."""
        rows, self._tokens = positions.shape
        self._rows, self._used = slice(first, first + rows), used
        each = torch.arange(first, first + rows, device=positions.device)
        self._index = (each[:, None], slice(None), positions)
        self._reserve(used)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new keys and values [rows, kv_heads, count, dim]; all that these rows hold."""
        if layer_idx == len(self._keys):
            self._keys.append(self._empty(key_states))
            self._values.append(self._empty(value_states))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._index] = key_states.transpose(1, 2)
        values[self._index] = value_states.transpose(1, 2)
        return keys[self._rows, :, : self._used], values[self._rows, :, : self._used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before those of the next forward (models ask; masks and positions are ours)."""
        return self._used - self._tokens

    @property
    def bytes(self) -> int:
        """Memory of all rows."""
        return sum(store.nbytes for store in self._stores())

    def read(self, row: int, length: int) -> list[torch.Tensor]:
        """Copies of the first `length` positions of a row, [heads, length, dim] each."""
        return [store[row, :, :length].clone() for store in self._stores()]

    def write(self, row: int, states: list[torch.Tensor], length: int) -> None:
        """Put the first `length` positions of what `read` gave into a row."""
        self._reserve(length)
        for store, state in zip(self._stores(), states, strict=True):
            store[row, :, :length] = state[:, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another."""
        for store in self._stores():
            store[target, :, :length] = store[source, :, :length]

    def clear(self, row: int) -> None:
        """Zero a row that may hold NaN: even masked it would spoil whoever comes after."""
        for store in self._stores():
            store[row].zero_()

    def wipe(self) -> None:
        """Zero all rows."""
        for store in self._stores():
            store.zero_()

    def _stores(self) -> list[torch.Tensor]:
        return [*self._keys, *self._values]

    def _empty(self, states: torch.Tensor) -> torch.Tensor:
        heads, size = states.shape[1], states.shape[3]
        return states.new_zeros(self.slots, heads, self._capacity, size)

    def _reserve(self, length: int) -> None:
        if length <= self._capacity:
            return
        self._capacity = min(self.max_length, max(length, BLOCK, 2 * self._capacity))
        for stores in (self._keys, self._values):
            for layer, old in enumerate(stores):
                stores[layer] = self._empty(old)
                stores[layer][:, :, : old.shape[2]] = old
