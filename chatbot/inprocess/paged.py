"""The key/value cache of the path in eight bits: blocks of positions, as OpenVINO wants them.

A row is a list of blocks. What an ended stream leaves for the next turn shares its blocks with the
rows that go on from it, and nothing is copied but the last one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from chatbot.inprocess.path import Part

BLOCK = 32
"""Positions of a block; OpenVINO's CPU kernel knows this size only."""


class Block:
    """A place in the cache; it is free again when nobody holds it."""

    __slots__ = ("_free", "index", "nbytes")

    def __init__(self, free: list[int], nbytes: int) -> None:
        self._free = free
        self.index = free.pop()
        self.nbytes = nbytes

    def __del__(self) -> None:
        self._free.append(self.index)


class PagedCache:
    """Keys and values [blocks * layers, kv_heads, BLOCK, head_dim], in the type that `request` has
    them in: what a block has of all layers lies side by side.

    Room for `slots` rows of `max_length` positions and `spare_bytes` beside them is only taken from
    the machine as blocks are used.
    """

    def __init__(
        self, request: Any, layers: int, slots: int, max_length: int, spare_bytes: int = 0
    ) -> None:
        ports = [each for each in request.model_inputs if each.any_name in ("keys", "values")]
        kinds = [_block_of(port, layers) for port in ports]
        self._block_bytes = sum(block.nbytes for block in kinds)
        blocks = slots * -(-max_length // BLOCK) + spare_bytes // self._block_bytes
        self._layers = layers
        self._stores = [np.zeros((blocks, *block.shape), block.dtype) for block in kinds]
        for port, store in zip(ports, self._stores, strict=True):
            flat = store.reshape(-1, *store.shape[2:])
            request.set_tensor(port, ov.Tensor(flat, shared_memory=True))
        self._free = list(reversed(range(blocks)))
        self._rows: list[list[Block]] = [[] for _ in range(slots)]

    def place(self, parts: Sequence[Part]) -> dict[str, Any]:
        """Make room for what the parts write; where each row's blocks are, for the graph."""
        found = [self._reach(part) for part in parts]
        return {
            "past": [part.start for part in parts],
            "begins": _sums(len(part.ids) for part in parts),
            "blocks": [block.index * self._layers for blocks in found for block in blocks],
            "block_begins": _sums(map(len, found)),
            "longest": max(part.end for part in parts),
        }

    @property
    def bytes(self) -> int:
        """Memory of all rows."""
        return sum(map(len, self._rows)) * self._block_bytes

    def read(self, row: int, length: int) -> list[Block]:
        """The blocks of the first `length` positions; the row must not write in them any more."""
        return self._rows[row][: -(-length // BLOCK)]

    def write(self, row: int, states: list[Block], length: int) -> None:
        """Put the first `length` positions of what `read` gave into a row."""
        whole, rest = divmod(length, BLOCK)
        self._rows[row] = states[:whole]
        if rest:
            own = self._block()
            for store in self._stores:
                store[own.index] = store[states[whole].index]
            self._rows[row].append(own)

    def move(self, source: int, target: int, length: int) -> None:
        """Put one row in another's place."""
        self._rows[target], self._rows[source] = self._rows[source], []

    def clear(self, row: int) -> None:
        """Empty a row; blocks are zeroed before they are used again."""
        self._rows[row] = []

    def wipe(self) -> None:
        """Empty all rows."""
        self._rows = [[] for _ in self._rows]

    def _reach(self, part: Part) -> list[Block]:
        if part.start == 0:
            self._rows[part.row] = []
        blocks = self._rows[part.row]
        while len(blocks) * BLOCK < part.end:
            blocks.append(self._zeroed())
        return blocks

    def _zeroed(self) -> Block:
        """A block without the NaN that whoever had it before may have left."""
        block = self._block()
        for store in self._stores:
            store[block.index] = 0
        return block

    def _block(self) -> Block:
        return Block(self._free, self._block_bytes)


def _block_of(port: Any, layers: int) -> NDArray[Any]:
    """One block of all layers, of a cache's input."""
    sides = [int(side.get_length()) for side in list(port.partial_shape)[1:]]
    return np.zeros((layers, *sides), port.element_type.to_dtype())


def _sums(lengths: Any) -> list[int]:
    """0 and the sums so far."""
    sums = [0]
    for length in lengths:
        sums.append(sums[-1] + length)
    return sums
