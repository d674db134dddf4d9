"""The key/value cache of many streams: one row a stream, each with a length of its own.

Rows in use are kept together at the front, so that a decode step reads views and copies nothing.
"""

from typing import Any

import torch
from transformers import Cache

MIN_ROWS, MIN_POSITIONS = 4, 256
"""Rows and positions that storage has at least. Both double, so that growing stays rare."""


KeysValues = tuple[torch.Tensor, torch.Tensor]


class SlotKVCache(Cache):  # type: ignore[misc]
    """A transformers cache of shape [rows, kv_heads, positions, head_dim] a layer.

    Before each forward, `place` says what it writes, and `put` writes it. Transformers' own asks
    `update`, which returns the used prefix of the rows that `show` named. Memory is that of as many
    streams as there have been at once, each as long as the longest so far.
    """

    def __init__(self, slots: int, max_length: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.max_length = max_length
        self.capacity = (0, 0)
        """Rows that there is memory for, and positions of each."""
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._read_rows = slice(0)
        self._num_positions, self._num_tokens = 0, 0
        self._write_index: tuple[torch.Tensor | slice, ...] = ()

    def set_write_positions(
        self, rows: torch.Tensor, positions: torch.Tensor, num_rows: int, num_positions: int
    ) -> None:
        """The next forward writes its tokens in these rows, below `end`, and positions, [tokens]
        each; nobody looks further than `used`."""
        self._write_index = (rows, slice(None), positions)
        self._num_positions = num_positions
        self._ensure_capacity(num_rows, num_positions)

    def set_read_rows(self, first_row: int, num_rows: int, num_tokens: int) -> None:
        """The next forward is of so many rows from `first` on, so many tokens each."""
        self._read_rows, self._num_tokens = slice(first_row, first_row + num_rows), num_tokens

    def allocate(self, layers: int, like: torch.Tensor, rows: int, positions: int) -> None:
        """Have memory for so many layers of so many rows and positions; for heads and sizes of
        `like` [kv_heads, dim]."""
        if rows > self.slots or positions > self.max_length:
            most = (self.slots, self.max_length)
            raise ValueError(f"{rows} rows of {positions} positions are more than {most}.")
        self._ensure_capacity(rows, positions)
        while len(self._keys) < layers:
            self._keys.append(self._new_buffer(like))
            self._values.append(self._new_buffer(like))

    @property
    def data_pointers(self) -> tuple[list[int], list[int]]:
        """Where the keys and the values of each layer lie, until there is more `room`."""
        both = (self._keys, self._values)
        keys, values = ([store.data_ptr() for store in stores] for stores in both)
        return keys, values

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """Write new keys and values [tokens, kv_heads, dim]; all there are."""
        if layer == len(self._keys):
            self._keys.append(self._new_buffer(keys))
            self._values.append(self._new_buffer(values))
        self._keys[layer][self._write_index] = keys
        self._values[layer][self._write_index] = values
        return self._keys[layer], self._values[layer]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> KeysValues:
        """Write the new keys and values [rows, kv_heads, count, dim]; all that the rows hold that
        are shown."""
        flat = (states.transpose(1, 2).flatten(0, 1) for states in (key_states, value_states))
        keys, values = self.store(layer_idx, *flat)
        return keys[self._read_rows, :, : self._num_positions], values[
            self._read_rows, :, : self._num_positions
        ]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before those of the next forward (models ask; masks and positions are ours)."""
        return self._num_positions - self._num_tokens

    @property
    def bytes(self) -> int:
        """Memory of all rows."""
        return sum(store.nbytes for store in self._buffers())

    def copy_row(self, row: int, length: int) -> list[torch.Tensor]:
        """Copies of the first `length` positions of a row, [heads, length, dim] each."""
        return [store[row, :, :length].clone() for store in self._buffers()]

    def restore_row(self, row: int, states: list[torch.Tensor], length: int) -> None:
        """Put the first `length` positions of what `read` gave into a row."""
        self._ensure_capacity(row + 1, length)
        for store, state in zip(self._buffers(), states, strict=True):
            store[row, :, :length] = state[:, :length]

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another."""
        for store in self._buffers():
            store[target, :, :length] = store[source, :, :length]

    def zero_row(self, row: int) -> None:
        """Zero a row that may hold NaN: even masked it would spoil whoever comes after."""
        for store in self._buffers():
            store[row : row + 1].zero_()  # none, where no step has come to it yet

    def zero_all(self) -> None:
        """Zero all rows."""
        for store in self._buffers():
            store.zero_()

    def free(self) -> None:
        """Let go of all memory."""
        self.capacity = (0, 0)
        self._keys.clear()
        self._values.clear()

    def _buffers(self) -> list[torch.Tensor]:
        return [*self._keys, *self._values]

    def _new_buffer(self, like: torch.Tensor) -> torch.Tensor:
        """Zeros for as many heads as `like` [.., kv_heads, dim] has."""
        rows, positions = self.capacity
        heads, size = like.shape[-2:]
        return like.new_zeros(rows, heads, positions, size)

    def _ensure_capacity(self, rows: int, positions: int) -> None:
        """Have memory for the rows below `rows` and so many positions of each."""
        before = self.capacity
        self.capacity = (
            _grow(before[0], rows, MIN_ROWS, self.slots),
            _grow(before[1], positions, MIN_POSITIONS, self.max_length),
        )
        if self.capacity == before:
            return
        for stores in (self._keys, self._values):
            for layer, old in enumerate(stores):
                stores[layer] = self._new_buffer(old.transpose(1, 2))
                stores[layer][: before[0], :, : before[1]] = old


def _grow(there: int, wanted: int, least: int, most: int) -> int:
    return there if wanted <= there else min(most, max(wanted, least, 2 * there))
