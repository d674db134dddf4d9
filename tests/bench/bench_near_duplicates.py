"""Measures CPU and memory of the split's clusters, beside comparing all pairs.

    python -m tests.bench.bench_near_duplicates                 # minutes: up to 100,000 questions
    python -m tests.bench.bench_near_duplicates --check         # the groups too are compared

Each size is measured in a process of its own, whose peak of memory is printed. All pairs are
compared of up to 5,000 questions.
"""

import argparse
import multiprocessing
import random
import resource
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table

from feedback.curation.split import NEAR_DUPLICATE
from feedback.matching.near_groups import near_duplicate_groups
from feedback.similarity import near_duplicates
from tests.fixtures.questions import framed_questions, natural_questions

QUESTIONS = {"random words": framed_questions, "sentences": natural_questions}
SIZES = ((200, 5), (200, 10), (200, 20), (4, 1000), (200, 100), (200, 500), (20, 5000))
TO_CHECK = ((200, 25), (20, 250), (5, 1000))
MOST_PAIRWISE = 5000

Keys = list[list[str]]


def compare_all(texts: Mapping[str, str], threshold: float) -> Keys:
    """Return the groups as they were found before: from every near pair."""
    group = {key: [key] for key in texts}
    for first, second in near_duplicates(texts, threshold):
        small, large = sorted((group[first], group[second]), key=len)
        if small is not large:
            large += small
            group |= dict.fromkeys(small, large)
    return list({id(keys): keys for keys in group.values()}.values())


def timed(
    find: Callable[[Mapping[str, str], float], Keys], texts: Mapping[str, str]
) -> tuple[Keys, float]:
    """Return the groups, and the seconds of CPU that they took."""
    began = time.process_time()
    return find(texts, NEAR_DUPLICATE), time.process_time() - began


def measure(kind: str, frames: int, fillings: int, check: bool) -> list[str]:
    """Return a row of the table; raise AssertionError where groups differ."""
    questions = QUESTIONS[kind](frames, fillings, random.Random(7))
    texts = {str(number): question for number, question in enumerate(questions)}
    groups, seconds = timed(near_duplicate_groups, texts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    before = "-"
    if len(texts) <= MOST_PAIRWISE:
        all_pairs, pairwise = timed(compare_all, texts)
        before = f"{pairwise:.1f} ({pairwise / seconds:.1f}x)"
        if check:
            assert {frozenset(keys) for keys in groups} == {frozenset(keys) for keys in all_pairs}
            before += ", same groups"
    return [str(len(texts)), str(len(groups)), f"{seconds:.1f}", before, str(peak)]


def main() -> None:
    """Print a row for each kind of question and each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare the groups")
    check = parser.parse_args().check
    columns = ("questions", "clusters", "CPU s", "all pairs: CPU s", "peak MB")
    table = Table("kind", "frames x fillings", *columns)
    for kind in QUESTIONS:
        for size in TO_CHECK if check else SIZES:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(measure, (kind, *size, check))
            table.add_row(kind, f"{size[0]} x {size[1]}", *row)
            print(kind, *size, *row, flush=True)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
