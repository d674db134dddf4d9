"""On how many CPU threads a path computes, and how it begins warm.

Threads wait for each other after every operation: a small model is faster on one of them than on
two, and a larger one does more for many streams in several workers of few threads each. What a
worker alone makes of all cores, and what else runs on them, only trying tells.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch

from chatbot.engine.local.runners.runner import Chunk, ModelRunner
from chatbot.model.base import FLOAT32_MAX_PARAMETERS

PROMPT, STEPS, ROUNDS = 32, 8, 3
ENOUGH = 1.0
"""Seconds after which a count of threads is tried no more rounds, or a warm-up ends."""
LARGE = 1_000_000_000
"""From so many parameters the products are so large that all cores are worth it."""
WORTH = 0.6
"""Twice the threads have to leave less of the time, or more workers with fewer each do more."""
FELT = 8
"""Steps that are slower on more threads than on few, and then it is few again."""
REST, LONGEST = 8, 1024
"""Steps until more are tried again: at first, and after many trials in vain. The first is so short
because what it was compared with may be from a quieter time."""
FAR = 2
"""So many times slower, and it is something beside that computes: threads that it keeps waiting are
10 times slower and more."""
PAUSE, LONG = 4.0, 64.0
"""Seconds until more threads are tried again then: at first, and where it goes on."""


def choose_thread_count(path: ModelRunner, most: int) -> int:
    """1, 2, 4 ... or as many as there may be; on a GPU they compute nothing. A small model has one:
    the other cores are there for HTTP, and for a cycle."""
    if not path.cpu or path.parameters <= FLOAT32_MAX_PARAMETERS:
        return 1
    if path.parameters >= LARGE:
        return most
    best, fastest = most, _measure_seconds(path, most)
    for fewer in reversed([count for count in (1, 2, 4, 8, 16, 32) if count < most]):
        if (seconds := _measure_seconds(path, fewer)) * WORTH < fastest:
            best, fastest = fewer, min(seconds, fastest)
    return best


@torch.inference_mode()
def warm_up(path: ModelRunner, slots: int) -> None:
    """Take a step of 1, 2 ... `slots` rows. Kernels are made for each number of rows at its first
    step, which takes up to twice as long and keeps 2 to 3 MB: better now than in a conversation.
    """
    path = path.with_own_cache(slots, 1)
    began = time.perf_counter()
    for rows in range(1, slots + 1):
        if time.perf_counter() - began > ENOUGH:
            break
        path.forward([Chunk(row, [0], 0, None) for row in range(rows)])


class ThreadGovernor:
    """On how many threads the next step computes: on ``few``, as tried at the start, or on the
    ``share`` of the cores that is there for it, while that is faster.

    Where something else computes beside it, threads that wait for each other wait for that too.
    """

    def __init__(
        self,
        path: ModelRunner,
        min_threads: int,
        max_threads: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.max_threads = max_threads
        self._path, self._clock = path, clock
        self._now = self.min_threads = min_threads
        self._took: dict[tuple[int, Hashable], deque[float]] = {}
        """Seconds of the last steps on so many threads, of one kind each."""
        self._rests: Counter[Hashable] = Counter()
        """How many steps of a kind there are to come on few threads."""
        self._next: dict[Hashable, int] = {}
        self._judged: Hashable = None
        """The kind that was judged last."""
        self._until = 0.0
        """When more threads are tried again, whatever the kind."""
        self._pause = PAUSE

    @contextmanager
    def step(self, kind: Hashable) -> Iterator[None]:
        """Around a step. Those of one kind take equally long; None: nobody knows how long, and it
        is as for the kind that was judged last."""
        began = self._clock()
        resting = self._rests[self._judged if kind is None else kind] or began < self._until
        self._shift(
            self.max_threads
            if self._known(self.min_threads, kind) and not resting
            else self.min_threads
        )
        yield
        if kind is not None:
            self._rests[kind] = max(0, self._rests[kind] - 1)
            took = self._took.setdefault((self._now, kind), deque(maxlen=FELT))
            took.append(self._clock() - began)
            self._judge(kind)

    def _known(self, threads: int, kind: Hashable) -> bool:
        return kind is None or len(self._took.get((threads, kind), ())) == FELT

    def _shift(self, threads: int) -> None:
        if threads != self._now:
            self._path.set_threads(threads)
            self._now = threads

    def _judge(self, kind: Hashable) -> None:
        """Have a rest from more threads that are no faster, or a pause if they are far slower."""
        here, few = (self._now, kind), (self.min_threads, kind)
        if here == few:
            return
        took, usual = self._took[here], self._took[few]
        far = sum(took) > FAR * sum(usual)
        if not (far or self._known(self._now, kind)):
            return
        self._judged = kind
        if far:
            self._until = self._clock() + self._pause
            self._pause = min(2 * self._pause, LONG)
        elif min(took) <= min(usual):
            self._next[kind] = REST
            self._pause = PAUSE
            return
        else:
            self._rests[kind] = self._next.get(kind, REST)
            self._next[kind] = min(2 * self._rests[kind], LONGEST)
        del self._took[here]


@torch.inference_mode()
def _measure_seconds(path: ModelRunner, count: int) -> float:
    """How long a short prompt and a few tokens after it take; the best of some rounds."""
    path.set_threads(count)
    path = path.with_own_cache(1, PROMPT + STEPS)
    taken: list[float] = []
    while len(taken) < ROUNDS and sum(taken) < ENOUGH:
        began = time.perf_counter()
        path.forward([Chunk(0, [0] * PROMPT, 0, None)])
        for step in range(STEPS):
            path.forward([Chunk(0, [0], PROMPT + step, None)])
        taken.append(time.perf_counter() - began)
    return min(taken)
