"""Samples the rows of an epoch: every new one, and the next of those shown beside them."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.utils.data import Sampler


class Pool(NamedTuple):
    """Holds the numbers of rows of which an epoch shows the next `per_epoch`, over and over."""

    rows: list[int]
    per_epoch: int


class ReplaySampler(Sampler[int]):
    """Orders an epoch's rows: every new row, and the next rows of each pool.

    Going through a pool epoch by epoch covers far more of what the base can do, or of how a
    question may be put, than the same few rows in each epoch, at the same cost. Rows of like length
    come in one batch, which saves a fifth of it as padding; batches come in random order.
    """

    def __init__(
        self,
        num_new: int,
        pools: Sequence[Pool],
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
    ) -> None:
        """Sample rows that are numbered new ones first; ``lengths`` are their tokens."""
        self.rng = random.Random(seed)
        self.new_rows = list(range(num_new))
        self.pools = [Pool(list(rows), min(count, len(rows))) for rows, count in pools]
        self.lengths, self.batch_size = lengths, batch_size

    def __len__(self) -> int:
        """Return the number of rows in an epoch."""
        return len(self.new_rows) + sum(pool.per_epoch for pool in self.pools)

    def __iter__(self) -> Iterator[int]:
        """Yield an epoch's row numbers; the next epoch has the next rows of the pools."""
        epoch = list(self.new_rows)
        for rows, count in self.pools:
            shown = rows[:count]
            rows[:] = rows[count:] + shown
            epoch += shown
        self.rng.shuffle(epoch)
        epoch.sort(key=lambda row: self.lengths[row])
        whole = len(epoch) - len(epoch) % self.batch_size
        starts = list(range(0, whole, self.batch_size))
        self.rng.shuffle(starts)
        for start in starts:
            yield from epoch[start : start + self.batch_size]
        yield from epoch[whole:]
