"""Replay: what the base can do is shown again while it learns, so that it is not forgotten."""

import random
from collections.abc import Iterator

from torch.utils.data import Sampler


class Turns(Sampler[int]):
    """The order of rows: each epoch has every new row and the next `take` of the replay rows.

    Rows are numbered new ones first. Replay in turns covers far more of what the base can do than
    the same few rows in each epoch, at the same cost.
    """

    def __init__(self, new: int, replay: int, take: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.new = list(range(new))
        self.replay = list(range(new, new + replay))
        self.take = min(take, replay)
        self.chance.shuffle(self.replay)

    def __len__(self) -> int:
        return len(self.new) + self.take

    def __iter__(self) -> Iterator[int]:
        epoch = self.new + self.replay[: self.take]
        self.replay = self.replay[self.take :] + self.replay[: self.take]
        self.chance.shuffle(epoch)
        return iter(epoch)
