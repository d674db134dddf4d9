"""How long those who are turned away should wait: told by how fast requests ended lately."""

import math
import time
from collections import deque

WINDOW = 32
"""Ends that are looked at."""
MAX_SECONDS = 60
"""Seconds that nobody is told to exceed."""


class RetryAfter:
    """Sees requests end, on whatever thread they do."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=WINDOW)

    def record_end(self) -> None:
        """A request has ended now."""
        self._ends.append(time.monotonic())

    def estimate_seconds(self, waiting: int) -> float:
        """Whole seconds until so many who wait now are served."""
        ends = list(self._ends)
        if len(ends) < 2:
            return 1
        pace = (ends[-1] - ends[0]) / (len(ends) - 1)
        return min(MAX_SECONDS, math.ceil(pace * waiting) or 1)
