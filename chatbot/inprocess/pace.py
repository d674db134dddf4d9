"""How a path begins: on how many CPU threads, and warm.

All cores, unless a small model is as fast on fewer. Threads wait for each other after every
operation: such a model is faster on one of them than on two, and what it leaves free is there for
others, a cycle, say. Only trying tells.
"""

import os
import time

import torch

from chatbot.base import SMALL
from chatbot.inprocess.path import Part, Path

PROMPT, STEPS, ROUNDS = 32, 8, 3
ENOUGH = 1.0
"""Seconds after which a count of threads is tried no more rounds, or a warm-up ends."""
LARGE = 1_000_000_000
"""From so many parameters the products are so large that all cores are worth it."""
WORTH = 0.85
"""More threads have to save more than the rest of the time."""


def threads(path: Path) -> int:
    """1, 2, 4 ... or all cores."""
    most = cores()
    if path.parameters >= LARGE or path.name == "int8":
        return untried(path.parameters)
    best, fastest = most, _seconds(path, most)
    for fewer in reversed([count for count in (1, 2, 4, 8, 16, 32) if count < most]):
        if (seconds := _seconds(path, fewer)) * WORTH < fastest:
            best, fastest = fewer, min(seconds, fastest)
    return best


def untried(parameters: int) -> int:
    """In eight bits, where trying would take compiling: two bring a stream of 100 million
    parameters on 1.4 times as fast as one, a small model's no faster."""
    if parameters >= LARGE:
        return cores()
    return 1 if parameters <= SMALL else min(2, cores())


@torch.inference_mode()
def warm(path: Path, slots: int) -> None:
    """Take a step of 1, 2 ... `slots` rows. Kernels are made for each number of rows at its first
    step, which takes up to twice as long and keeps 2 to 3 MB: better now than in a conversation.
    """
    path = path.apart(slots, 1)
    began = time.perf_counter()
    for rows in range(1, slots + 1):
        if time.perf_counter() - began > ENOUGH:
            break
        path.read([Part(row, [0], 0, None) for row in range(rows)])


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0))


@torch.inference_mode()
def _seconds(path: Path, count: int) -> float:
    """How long a short prompt and a few tokens after it take; the best of some rounds."""
    path.take(count)
    path = path.apart(1, PROMPT + STEPS)
    taken: list[float] = []
    while len(taken) < ROUNDS and sum(taken) < ENOUGH:
        began = time.perf_counter()
        path.read([Part(0, [0] * PROMPT, 0, None)])
        for step in range(STEPS):
            path.read([Part(0, [0], PROMPT + step, None)])
        taken.append(time.perf_counter() - began)
    return min(taken)
