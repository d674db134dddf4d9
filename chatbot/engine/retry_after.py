"""How long those who are turned away should wait: told by how fast requests ended lately."""

import math
import time
from collections import deque

RECENT = 32
"""Ends that are looked at."""
LONGEST = 60
"""Seconds that nobody is told to exceed."""


class Patience:
    """Sees requests end, on whatever thread they do."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=RECENT)

    def ended(self) -> None:
        """A request has ended now."""
        self._ends.append(time.monotonic())

    def seconds(self, waiting: int) -> float:
        """Whole seconds until so many who wait now are served."""
        ends = list(self._ends)
        if len(ends) < 2:
            return 1
        pace = (ends[-1] - ends[0]) / (len(ends) - 1)
        return min(LONGEST, math.ceil(pace * waiting) or 1)
