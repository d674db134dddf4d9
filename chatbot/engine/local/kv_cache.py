"""Holds the key/value cache of many streams: a row for each, with a length of its own.

Rows in use are kept together at the front, so that a decode step reads views and copies nothing.
"""

from typing import Any

import torch
from transformers import Cache

from chatbot.engine.progress import Progress

MIN_ROWS, MIN_POSITIONS = 4, 256
"""The smallest capacity. It grows by doubling, so that copying to a larger buffer stays rare."""

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""The buffers of one layer, each [rows, kv_heads, positions, head_dim]."""


class SlotKVCache(Cache):  # type: ignore[misc]
    """Holds keys and values, a buffer [rows, kv_heads, positions, head_dim] of each for a layer.

    Before a forward, `set_write_positions` names the slots that its tokens have, and `store` fills
    them layer by layer. Transformers' own models call `update` instead, which returns the used
    positions of the rows that `set_read_rows` named. The memory is that of as many streams as there
    have been at once, each as long as the longest so far.
    """

    def __init__(self, slots: int, max_length: int, progress: Progress | None = None) -> None:
        """Make it empty; each layer that a forward stores counts as ``progress``."""
        super().__init__(layers=[])
        self.progress = progress or Progress()
        self.slots = slots
        self.max_length = max_length
        self.capacity = (0, 0)
        """Rows that memory is allocated for, and positions of each."""
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._read_rows = slice(0)
        self._num_positions, self._num_tokens = 0, 0
        self._write_index: tuple[torch.Tensor | slice, ...] = ()

    def set_write_positions(
        self, rows: torch.Tensor, positions: torch.Tensor, num_rows: int, num_positions: int
    ) -> None:
        """Set where the next forward stores its tokens: `rows` and `positions`, [tokens] each.

        Rows are below `num_rows`, and attention reads the first `num_positions` positions.
        """
        self._write_index = (rows, slice(None), positions)
        self._num_positions = num_positions
        self._ensure_capacity(num_rows, num_positions)

    def set_read_rows(self, first_row: int, num_rows: int, num_tokens: int) -> None:
        """Set which rows the next forward computes, with `num_tokens` tokens each; for `update`."""
        self._read_rows, self._num_tokens = slice(first_row, first_row + num_rows), num_tokens

    def allocate(self, layers: int, like: torch.Tensor, rows: int, positions: int) -> None:
        """Allocate buffers of at least so many rows and positions, for heads as in `like`
        [kv_heads, head_dim].

        Raises ValueError for more than `slots` rows or `max_length` positions.
        """
        if rows > self.slots or positions > self.max_length:
            limits = (self.slots, self.max_length)
            raise ValueError(f"{rows} rows of {positions} positions are more than {limits}.")
        self._ensure_capacity(rows, positions)
        while len(self._keys) < layers:
            self._keys.append(self._new_buffer(like))
            self._values.append(self._new_buffer(like))

    @property
    def data_pointers(self) -> tuple[list[int], list[int]]:
        """Return the addresses of each layer's keys and values; they hold while `capacity` does."""
        keys = [buffer.data_ptr() for buffer in self._keys]
        return keys, [buffer.data_ptr() for buffer in self._values]

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """Store new keys and values [tokens, kv_heads, head_dim]; return the layer's buffers."""
        self.progress.advance()
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
        """Store new keys and values [rows, kv_heads, tokens, head_dim]; return those of the rows to
        read, [rows, kv_heads, num_positions, head_dim]. Transformers' models call it."""
        flat = (states.transpose(1, 2).flatten(0, 1) for states in (key_states, value_states))
        keys, values = self.store(layer_idx, *flat)
        used = (self._read_rows, slice(None), slice(self._num_positions))
        return keys[used], values[used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions before the next forward's. Models ask, but our masks decide."""
        return self._num_positions - self._num_tokens

    @property
    def bytes(self) -> int:
        """Return the memory of all rows in bytes."""
        return sum(buffer.nbytes for buffer in self._buffers())

    def copy_row(self, row: int, length: int) -> list[torch.Tensor]:
        """Return copies of a row's first `length` positions, [kv_heads, length, head_dim] each: the
        keys layer by layer, then the values."""
        return [buffer[row, :, :length].clone() for buffer in self._buffers()]

    def restore_row(self, row: int, states: list[torch.Tensor], length: int) -> None:
        """Write the first `length` positions of what `copy_row` returned into a row."""
        self._ensure_capacity(row + 1, length)
        for buffer, state in zip(self._buffers(), states, strict=True):
            buffer[row, :, :length] = state[:, :length]

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another."""
        for buffer in self._buffers():
            buffer[target, :, :length] = buffer[source, :, :length]

    def zero_row(self, row: int) -> None:
        """Zero a row that may hold NaN: weighted by a mask's zero it would still be NaN."""
        for buffer in self._buffers():
            buffer[row : row + 1].zero_()  # an empty slice if no step has used it yet

    def zero_all(self) -> None:
        """Zero all rows."""
        for buffer in self._buffers():
            buffer.zero_()

    def free(self) -> None:
        """Release all memory."""
        self.capacity = (0, 0)
        self._keys.clear()
        self._values.clear()

    def _buffers(self) -> list[torch.Tensor]:
        return [*self._keys, *self._values]

    def _new_buffer(self, like: torch.Tensor) -> torch.Tensor:
        """Return zeros of the present capacity, for heads as in `like` [.., kv_heads, head_dim]."""
        rows, positions = self.capacity
        heads, head_dim = like.shape[-2:]
        return like.new_zeros(rows, heads, positions, head_dim)

    def _ensure_capacity(self, rows: int, positions: int) -> None:
        """Grow the buffers to at least so many rows and positions, keeping what they hold."""
        before = self.capacity
        self.capacity = (
            _grow(before[0], rows, MIN_ROWS, self.slots),
            _grow(before[1], positions, MIN_POSITIONS, self.max_length),
        )
        if self.capacity == before:
            return
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                buffers[layer] = self._new_buffer(old.transpose(1, 2))
                buffers[layer][: before[0], :, : before[1]] = old


def _grow(current: int, wanted: int, minimum: int, maximum: int) -> int:
    return current if wanted <= current else min(maximum, max(wanted, minimum, 2 * current))
