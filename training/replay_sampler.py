"""Replay: what the base can do is shown again while it learns, so that it is not forgotten."""

import random
from collections.abc import Iterator

from torch.utils.data import Sampler


class ReplaySampler(Sampler[int]):
    """The order of rows: each epoch has every new row and the next `take` of the replay rows.

    Rows are numbered new ones first. Replay in turns covers far more of what the base can do than
    the same few rows in each epoch, at the same cost.
    """

    def __init__(self, num_new: int, num_replay: int, replay_per_epoch: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.new_rows = list(range(num_new))
        self.replay_rows = list(range(num_new, num_new + num_replay))
        self.replay_per_epoch = min(replay_per_epoch, num_replay)
        self.rng.shuffle(self.replay_rows)

    def __len__(self) -> int:
        return len(self.new_rows) + self.replay_per_epoch

    def __iter__(self) -> Iterator[int]:
        epoch = self.new_rows + self.replay_rows[: self.replay_per_epoch]
        self.replay_rows = (
            self.replay_rows[self.replay_per_epoch :] + self.replay_rows[: self.replay_per_epoch]
        )
        self.rng.shuffle(epoch)
        return iter(epoch)
