"""Measures CPU and memory of the split's clusters, beside comparing pair by pair.

python -m tests.bench.bench_near_duplicates
"""

import random
import resource
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from feedback.curation.split import NEAR_DUPLICATE
from feedback.matching.near_groups import near_duplicate_groups
from feedback.similarity import near_duplicates
from tests.fixtures.questions import framed_questions

SIZES = ((200, 5), (200, 10), (200, 20), (4, 1000), (200, 500), (20, 5000))
MOST_PAIRWISE = 4000


def timed(work: Callable[[], list[Any]]) -> tuple[list[Any], float]:
    """What it returns, and its seconds of CPU."""
    began = time.process_time()
    return work(), time.process_time() - began


def measure(frames: int, fillings: int) -> list[str]:
    questions = framed_questions(frames, fillings, random.Random(7))
    texts = {str(number): question for number, question in enumerate(questions)}
    groups, seconds = timed(lambda: near_duplicate_groups(texts, NEAR_DUPLICATE))
    before = "-"
    if len(texts) <= MOST_PAIRWISE:
        _, pairwise = timed(lambda: list(near_duplicates(texts, NEAR_DUPLICATE)))
        before = f"{pairwise:.1f} ({pairwise / seconds:.1f}x)"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return [str(len(texts)), str(len(groups)), f"{seconds:.1f}", before, str(peak)]


def main() -> None:
    table = Table("frames x fillings", "questions", "clusters", "CPU s", "pair by pair", "peak MB")
    for frames, fillings in SIZES:
        table.add_row(f"{frames} x {fillings}", *measure(frames, fillings))
    Console().print(table)


if __name__ == "__main__":
    main()
