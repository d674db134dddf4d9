"""Samples replay rows beside the new ones, so that what the base can do is not forgotten."""

import random
from collections.abc import Iterator

from torch.utils.data import Sampler


class ReplaySampler(Sampler[int]):
    """Orders an epoch's rows: every new row, and the next `replay_per_epoch` replay rows.

    Rows are numbered new ones first. Going through the replay rows epoch by epoch covers far more
    of what the base can do than the same few rows in each epoch, at the same cost.
    """

    def __init__(self, num_new: int, num_replay: int, replay_per_epoch: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.new_rows = list(range(num_new))
        self.replay_rows = list(range(num_new, num_new + num_replay))
        self.replay_per_epoch = min(replay_per_epoch, num_replay)
        self.rng.shuffle(self.replay_rows)

    def __len__(self) -> int:
        """Return the number of rows in an epoch."""
        return len(self.new_rows) + self.replay_per_epoch

    def __iter__(self) -> Iterator[int]:
        """Yield an epoch's row numbers, shuffled; the next epoch has the next replay rows."""
        shown, waiting = (
            self.replay_rows[: self.replay_per_epoch],
            self.replay_rows[self.replay_per_epoch :],
        )
        epoch = self.new_rows + shown
        self.replay_rows = waiting + shown
        self.rng.shuffle(epoch)
        return iter(epoch)
