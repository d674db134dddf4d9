"""Chooses how many prompt tokens a step computes beside running streams, by what steps have cost.

A step of both takes longer than one that only decodes, and every running stream waits for it. It
may take twice as long: the gaps between a stream's tokens at most double while somebody
else's prompt is read, which goes on at half its speed alone and better, for both read the weights
once.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GAP_FACTOR = 2.0
"""How many times as long as one that only decodes a step of both may take."""
FIRST_TOKENS, LEAST_TOKENS = 32, 4
"""Prompt tokens beside streams before anything was timed, and at least."""
PRECISION = 8
"""Beside streams the number is rounded to an eighth: torch makes kernels for each number."""
GROWTH = 1.5
"""How much more than the last time, at most: one step that seemed cheap must not stop all."""
WINDOW = 5
"""Steps of a kind whose median counts."""
STEPS_BETWEEN = 24
"""Steps of both, one after the other, before one only decodes, to be timed anew."""


class PromptBudget:
    """Times the steps and says how many prompt tokens the next one may have, up to `most`."""

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._most, self._clock = most, clock
        self._last = min(FIRST_TOKENS, most)
        self._steps_of_both = 0
        """Since the last one that only decoded."""
        self._decode_seconds: dict[int, deque[float]] = {}
        """Tokens that a step decodes -> how long the last steps took that did nothing else."""
        self._token_seconds = deque[float](maxlen=WINDOW)
        """What a prompt token has added to each of the last steps of both."""

    def tokens(self, decoding: int) -> int:
        """Return how many prompt tokens may go beside so many decoded ones."""
        if not decoding:
            return self._most
        if self._steps_of_both >= STEPS_BETWEEN:
            return 0
        alone = self._seconds_alone(decoding)
        if alone is not None and self._token_seconds:
            per_token = max(statistics.median(self._token_seconds), 1e-9)
            wanted = (GAP_FACTOR - 1) * alone / per_token
            allowed = max(LEAST_TOKENS, min(wanted, self._last * GROWTH))
            self._last = int(min(allowed, self._most))
        return self._last - self._last % max(1, self._last // PRECISION)

    @contextmanager
    def step(self, decoding: int, prompt: int) -> Iterator[None]:
        """Time the step inside, which has so many tokens of both kinds."""
        began = self._clock()
        yield
        seconds = self._clock() - began
        if decoding and not prompt:
            self._steps_of_both = 0
            recent = deque[float](maxlen=WINDOW)
            self._decode_seconds.setdefault(decoding, recent).append(seconds)
            return
        self._steps_of_both += decoding > 0
        if decoding and (alone := self._seconds_alone(decoding)) is not None:
            self._token_seconds.append(max(0.0, seconds - alone) / prompt)

    def _seconds_alone(self, decoding: int) -> float | None:
        """Return how long a step takes that only decodes so many tokens, or nearly so many; None if
        none was timed."""
        if not self._decode_seconds:
            return None
        nearest = min(self._decode_seconds, key=lambda tokens: abs(tokens - decoding))
        return statistics.median(self._decode_seconds[nearest])
