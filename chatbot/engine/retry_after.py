"""Estimates after how many seconds a refused request is worth sending again (Retry-After)."""

import math
import time
from collections import deque

WINDOW = 32
"""How many of the latest ends the rate is computed from."""
MAX_SECONDS = 60
"""The longest wait that is ever asked for."""


class RetryAfter:
    """Estimates waiting times from how fast requests ended lately; any thread may call it."""

    def __init__(self) -> None:
        self._end_times: deque[float] = deque(maxlen=WINDOW)

    def record_end(self) -> None:
        """Record that a request has ended now."""
        self._end_times.append(time.monotonic())

    def estimate_seconds(self, waiting: int) -> float:
        """Return in how many whole seconds ``waiting`` requests are served: 1 to `MAX_SECONDS`."""
        end_times = list(self._end_times)
        if len(end_times) < 2:
            return 1
        seconds_per_request = (end_times[-1] - end_times[0]) / (len(end_times) - 1)
        return min(MAX_SECONDS, math.ceil(seconds_per_request * waiting) or 1)
