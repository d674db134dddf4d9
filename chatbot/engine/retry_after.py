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
        self._end_times: deque[float] = deque(maxlen=WINDOW)

    def record_end(self) -> None:
        """A request has ended now."""
        self._end_times.append(time.monotonic())

    def estimate_seconds(self, waiting: int) -> float:
        """Whole seconds until so many who wait now are served."""
        end_times = list(self._end_times)
        if len(end_times) < 2:
            return 1
        seconds_per_request = (end_times[-1] - end_times[0]) / (len(end_times) - 1)
        return min(MAX_SECONDS, math.ceil(seconds_per_request * waiting) or 1)
