"""The key/value cache of many streams: one row a stream, each with a length of its own.

Rows in use are kept together at the front, so that a decode step reads views and copies nothing.
"""

from typing import Any

import torch
from transformers import Cache

ROWS, BLOCK = 4, 256
"""Rows and positions that storage has at least. Both double, so that growing stays rare."""


Pair = tuple[torch.Tensor, torch.Tensor]


class SlotCache(Cache):  # type: ignore[misc]
    """A transformers cache of shape [rows, kv_heads, positions, head_dim] a layer.

    Before each forward, `place` says what it writes, and `put` writes it. Transformers' own asks
    `update`, which returns the used prefix of the rows that `show` named. Memory is that of as many
    streams as there have been at once, each as long as the longest so far.
    """

    def __init__(self, slots: int, max_length: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.max_length = max_length
        self.room = (0, 0)
        """Rows that there is memory for, and positions of each."""
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._shown = slice(0)
        self._used, self._tokens = 0, 0
        self._index: tuple[torch.Tensor | slice, ...] = ()

    def place(self, rows: torch.Tensor, positions: torch.Tensor, end: int, used: int) -> None:
        """The next forward writes its tokens in these rows, below `end`, and positions, [tokens]
        each; nobody looks further than `used`."""
        self._index = (rows, slice(None), positions)
        self._used = used
        self._reserve(end, used)

    def show(self, first: int, rows: int, tokens: int) -> None:
        """The next forward is of so many rows from `first` on, so many tokens each."""
        self._shown, self._tokens = slice(first, first + rows), tokens

    def hold(self, layers: int, like: torch.Tensor, rows: int, positions: int) -> None:
        """Have memory for so many layers of so many rows and positions; for heads and sizes of
        `like` [kv_heads, dim]."""
        if rows > self.slots or positions > self.max_length:
            most = (self.slots, self.max_length)
            raise ValueError(f"{rows} rows of {positions} positions are more than {most}.")
        self._reserve(rows, positions)
        while len(self._keys) < layers:
            self._keys.append(self._empty(like))
            self._values.append(self._empty(like))

    @property
    def addresses(self) -> tuple[list[int], list[int]]:
        """Where the keys and the values of each layer lie, until there is more `room`."""
        both = (self._keys, self._values)
        keys, values = ([store.data_ptr() for store in stores] for stores in both)
        return keys, values

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        """Write new keys and values [tokens, kv_heads, dim]; all there are."""
        if layer == len(self._keys):
            self._keys.append(self._empty(keys))
            self._values.append(self._empty(values))
        self._keys[layer][self._index] = keys
        self._values[layer][self._index] = values
        return self._keys[layer], self._values[layer]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> Pair:
        """Write the new keys and values [rows, kv_heads, count, dim]; all that the rows hold that
        are shown."""
        flat = (states.transpose(1, 2).flatten(0, 1) for states in (key_states, value_states))
        keys, values = self.put(layer_idx, *flat)
        return keys[self._shown, :, : self._used], values[self._shown, :, : self._used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before those of the next forward (models ask; masks and positions are ours)."""
        return self._used - self._tokens

    @property
    def bytes(self) -> int:
        """Memory of all rows."""
        return sum(store.nbytes for store in self._stores())

    def copy_row(self, row: int, length: int) -> list[torch.Tensor]:
        """Copies of the first `length` positions of a row, [heads, length, dim] each."""
        return [store[row, :, :length].clone() for store in self._stores()]

    def restore_row(self, row: int, states: list[torch.Tensor], length: int) -> None:
        """Put the first `length` positions of what `read` gave into a row."""
        self._reserve(row + 1, length)
        for store, state in zip(self._stores(), states, strict=True):
            store[row, :, :length] = state[:, :length]

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another."""
        for store in self._stores():
            store[target, :, :length] = store[source, :, :length]

    def zero_row(self, row: int) -> None:
        """Zero a row that may hold NaN: even masked it would spoil whoever comes after."""
        for store in self._stores():
            store[row : row + 1].zero_()  # none, where no step has come to it yet

    def zero_all(self) -> None:
        """Zero all rows."""
        for store in self._stores():
            store.zero_()

    def free(self) -> None:
        """Let go of all memory."""
        self.room = (0, 0)
        self._keys.clear()
        self._values.clear()

    def _stores(self) -> list[torch.Tensor]:
        return [*self._keys, *self._values]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        """Zeros for as many heads as `like` [.., kv_heads, dim] has."""
        rows, positions = self.room
        heads, size = like.shape[-2:]
        return like.new_zeros(rows, heads, positions, size)

    def _reserve(self, rows: int, positions: int) -> None:
        """Have memory for the rows below `rows` and so many positions of each."""
        before = self.room
        self.room = (
            _grown(before[0], rows, ROWS, self.slots),
            _grown(before[1], positions, BLOCK, self.max_length),
        )
        if self.room == before:
            return
        for stores in (self._keys, self._values):
            for layer, old in enumerate(stores):
                stores[layer] = self._empty(old.transpose(1, 2))
                stores[layer][: before[0], :, : before[1]] = old


def _grown(there: int, wanted: int, least: int, most: int) -> int:
    return there if wanted <= there else min(most, max(wanted, least, 2 * there))
