"""Chooses on how many CPU threads a model runner computes, and warms it up.

Threads wait for each other after every operation: a small model is faster on one of them than on
two, and a larger one does more for many streams in several workers of few threads each. What a
worker alone makes of all cores, and what else runs on them, only trying tells.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto

import torch

from chatbot.engine.local.runners.runner import Chunk, ModelRunner
from chatbot.engine.machine.hardware import available_cores
from chatbot.engine.settings import EngineSettings
from chatbot.model.base import FLOAT32_MAX_PARAMETERS

TRIAL_PROMPT, TRIAL_STEPS, TRIAL_ROUNDS = 32, 8, 3
"""Tokens of the prompt and decode steps of one round of a trial, and rounds; the fastest counts."""
ENOUGH_SECONDS = 1.0
"""A trial of one thread count or a warm-up that has taken so long ends early."""
LARGE_PARAMETERS = 1_000_000_000
"""From so many parameters the products are so large that all cores are worth it."""
DOUBLING_GAIN = 0.6
"""Twice the threads must need at most this part of the time, or more workers with fewer do more."""


def choose_thread_count(runner: ModelRunner, max_threads: int) -> int:
    """Return 1, 2, 4 ... or `max_threads` by trial; 1 on a GPU, where threads compute nothing.

    A small model has one: the other cores are there for HTTP, and for training.
    """
    if not runner.cpu or runner.parameters <= FLOAT32_MAX_PARAMETERS:
        return 1
    if runner.parameters >= LARGE_PARAMETERS:
        return max_threads
    best, fastest = max_threads, _measure_seconds(runner, max_threads)
    for fewer in reversed([count for count in (1, 2, 4, 8, 16, 32) if count < max_threads]):
        if (seconds := _measure_seconds(runner, fewer)) * DOUBLING_GAIN < fastest:
            best, fastest = fewer, min(seconds, fastest)
    return best


@torch.inference_mode()
def _measure_seconds(runner: ModelRunner, threads: int) -> float:
    """Return the seconds for a short prompt and a few tokens after it, of the fastest round."""
    runner.set_threads(threads)
    runner = runner.with_own_cache(1, TRIAL_PROMPT + TRIAL_STEPS)
    rounds: list[float] = []
    while len(rounds) < TRIAL_ROUNDS and sum(rounds) < ENOUGH_SECONDS:
        began = time.perf_counter()
        runner.forward([Chunk(0, [0] * TRIAL_PROMPT, 0, None)])
        for step in range(TRIAL_STEPS):
            runner.forward([Chunk(0, [0], TRIAL_PROMPT + step, None)])
        rounds.append(time.perf_counter() - began)
    return min(rounds)


@torch.inference_mode()
def warm_up(runner: ModelRunner, slots: int) -> None:
    """Take a step of 1, 2 ... `slots` rows, so that no conversation waits for its kernels.

    They are made for each number of rows at its first step, which takes up to twice as long and
    keeps 2 to 3 MB.
    """
    runner = runner.with_own_cache(slots, 1)
    began = time.perf_counter()
    for rows in range(1, slots + 1):
        if time.perf_counter() - began > ENOUGH_SECONDS:
            break
        runner.forward([Chunk(row, [0], 0, None) for row in range(rows)])


def step_kind(chunks: Sequence[Chunk]) -> tuple[int, bool] | None:
    """Return a key that decode steps of equal length share: (rows, whether LoRA is computed).

    None for a step with several tokens of a row, a prompt or a draft: it is as long as that is.
    """
    if any(len(chunk.ids) > 1 for chunk in chunks):
        return None
    return len(chunks), any(chunk.adapter is not None for chunk in chunks)


class GovernorState(Enum):
    """Names what a `ThreadGovernor` does with the steps of one kind."""

    BASELINE = auto()
    """Time steps on few threads, for later comparison."""
    BOOST = auto()
    """Use all threads, as a trial or because they are faster."""
    BACKOFF = auto()
    """Use few threads for a number of steps: more were no faster for this kind."""
    PAUSE = auto()
    """Use few threads for some seconds whatever the kind: another process computes beside."""


@dataclass(frozen=True)
class GovernorConfig:
    """Holds the numbers of a `ThreadGovernor`."""

    window: int = 8
    """Steps that are timed before they are compared."""
    first_backoff: int = 8
    """Steps until more threads are tried again, at first: few, because the baseline may be from a
    quieter time."""
    max_backoff: int = 1024
    """Steps until they are tried again after many trials in vain."""
    contention: float = 2.0
    """So many times slower, and another process computes beside: threads that it keeps waiting are
    10 times slower and more."""
    first_pause: float = 4.0
    """Seconds until more threads are tried again after contention, at first."""
    max_pause: float = 64.0
    """Seconds until they are tried again where contention goes on."""


class ThreadGovernor:
    """Chooses for each step between `min_threads` and `max_threads`, by what was faster lately.

    `min_threads` is what the trial at the start found, `max_threads` the cores that are free for
    this worker now. Where another process computes on them as well, threads that wait for each
    other wait for that too, and more of them are slower; only timing tells. Each kind of step (see
    `step_kind`) has a state of its own, but for the pause, which is common to all:

    ========  =======  ==================================================  ====================
    state     threads  until                                               then
    ========  =======  ==================================================  ====================
    BASELINE  min      `window` steps are timed                            BOOST
    BOOST     max      its steps took `contention` times the baseline's    PAUSE
    BOOST     max      `window` steps are timed, none as fast as the       BACKOFF
                       fastest of the baseline
    BOOST     max      `window` steps are timed, one as fast               BOOST, judged anew at
                                                                           every step
    BACKOFF   min      its number of steps is over                         BOOST
    PAUSE     min      its seconds are over                                the state before
    ========  =======  ==================================================  ====================

    Each backoff and each pause is twice as long as the last one, up to a limit, for a trial costs
    time; a boost that is worth it has both begin at their first length again.
    """

    def __init__(
        self,
        runner: ModelRunner,
        min_threads: int,
        max_threads: int,
        clock: Callable[[], float] = time.perf_counter,
        config: GovernorConfig | None = None,
    ) -> None:
        self.min_threads = min_threads
        self.max_threads = max_threads
        self._runner, self._clock = runner, clock
        self._config = config or GovernorConfig()
        self._threads = min_threads
        self._seconds: dict[tuple[int, Hashable], deque[float]] = {}
        """(threads, kind) -> how long its last steps took, `window` of them at most."""
        self._backoff_left: Counter[Hashable] = Counter()
        """Steps of a kind until its backoff is over."""
        self._next_backoff: dict[Hashable, int] = {}
        """Steps of a kind's next backoff."""
        self._paused_until = 0.0
        self._next_pause = self._config.first_pause
        self._last_judged: Hashable = None
        """The kind that was judged last."""

    @contextmanager
    def step(self, kind: Hashable) -> Iterator[None]:
        """Set the threads for the step inside, and time it. Steps of one `kind` take equally long.

        None is for steps of unknown length: they cannot be compared, and run as the kind that was
        judged last would.
        """
        began = self._clock()
        boosted = self._state(kind, began) is GovernorState.BOOST
        self._set_threads(self.max_threads if boosted else self.min_threads)
        yield
        if kind is not None:
            self._backoff_left[kind] = max(0, self._backoff_left[kind] - 1)
            recent = deque[float](maxlen=self._config.window)
            self._seconds.setdefault((self._threads, kind), recent).append(self._clock() - began)
            self._judge(kind)

    def _state(self, kind: Hashable, now: float) -> GovernorState:
        if now < self._paused_until:
            return GovernorState.PAUSE
        if self._backoff_left[self._last_judged if kind is None else kind]:
            return GovernorState.BACKOFF
        if kind is None or self._is_timed(self.min_threads, kind):
            return GovernorState.BOOST
        return GovernorState.BASELINE

    def _is_timed(self, threads: int, kind: Hashable) -> bool:
        return len(self._seconds.get((threads, kind), ())) == self._config.window

    def _set_threads(self, threads: int) -> None:
        if threads != self._threads:
            self._runner.set_threads(threads)
            self._threads = threads

    def _judge(self, kind: Hashable) -> None:
        """Compare steps on more threads with the baseline, and go on, back off or pause."""
        if self._threads == self.min_threads:
            return
        boosted = self._seconds[self._threads, kind]
        baseline = self._seconds[self.min_threads, kind]
        # Sums are compared at every step, not only when the window is full: a step that waits for
        # another process may take longer than the whole baseline twice, and one of them is enough.
        contended = sum(boosted) > self._config.contention * sum(baseline)
        if not (contended or self._is_timed(self._threads, kind)):
            return
        self._last_judged = kind
        if contended:
            self._pause()
        elif min(boosted) <= min(baseline):  # the fastest ones: others may have been interrupted
            self._next_backoff[kind] = self._config.first_backoff
            self._next_pause = self._config.first_pause
            return
        else:
            self._back_off(kind)
        # The next trial is of its own time: what was slow now must not count against it.
        del self._seconds[self._threads, kind]

    def _pause(self) -> None:
        self._paused_until = self._clock() + self._next_pause
        self._next_pause = min(2 * self._next_pause, self._config.max_pause)

    def _back_off(self, kind: Hashable) -> None:
        steps = self._next_backoff.get(kind, self._config.first_backoff)
        self._backoff_left[kind] = steps
        self._next_backoff[kind] = min(2 * steps, self._config.max_backoff)


def start_governor(runner: ModelRunner, settings: EngineSettings, measured: int) -> ThreadGovernor:
    """Set the number of CPU threads, warm the runner up and return the governor of its steps.

    The number is that of the settings, else the one `measured` by another worker on this machine,
    else the one that a trial finds.
    """
    cores = max(1, available_cores() // (settings.workers or 1))
    threads = settings.threads or measured or choose_thread_count(runner, cores)
    runner.set_threads(threads)
    warm_up(runner, settings.slots)
    spare = uses_spare_cores(runner, settings)
    return ThreadGovernor(runner, threads, max(cores, threads) if spare else threads)


def uses_spare_cores(runner: ModelRunner, settings: EngineSettings) -> bool:
    """Tell whether steps use more cores than they need while these are free.

    Those of a small model do not: what it leaves free serves HTTP and training.
    """
    fixed = settings.threads or runner.parameters <= FLOAT32_MAX_PARAMETERS
    return runner.cpu and not fixed
