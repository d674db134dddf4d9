"""Measures what a cycle teaches: 20 corrections of the starter's facts, on three seeds.

    python tests/bench/bench_loop.py [seeds]

For each seed other facts of the shop change. Corrections that the split holds out come on top of
the 20 that train. All answers are the adapter's own, with nothing in the prompt. The last row is
the control: every correction replaced by one wrong sentence must be refused.
"""

import logging
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the server sets it

from chatbot.service import Service
from feedback.curation.curate import curate
from feedback.settings import Home
from talkback.cycle import run_cycle
from tests.fixtures.shop_corrections import (
    ShopFact,
    ask_service,
    correct_answer,
    load_facts,
    with_new_fact,
)

TRAINED = 20
POISON = "Please contact the moon for further information."


def measure(seed: int, poison: str | None = None) -> list[str]:
    """One seed's row of the table."""
    with tempfile.TemporaryDirectory(prefix="talkback-bench-") as folder:
        home = Home.find(Path(folder))
        service = Service.open(home)
        try:
            return row(service, home, seed, poison)
        finally:
            service.close()


def row(service: Service, home: Home, seed: int, poison: str | None) -> list[str]:
    """Correct, run the cycle, ask again."""
    rng = random.Random(seed)
    known = rng.sample(load_facts(), k=len(load_facts()))
    changed = corrected(service, known, rng, poison)
    untouched = [fact for fact in known if fact.topic not in {new.topic for new in changed}]
    before = [right(service, fact, fact.question) for fact in untouched]
    began = time.monotonic()
    outcome = run_cycle(home)
    seconds = time.monotonic() - began
    print(seed, outcome, file=sys.stderr)
    while outcome.kind == "promoted" and service.speaking != outcome.adapter:
        time.sleep(0.1)
    trained = set(trains(service))
    learnt = [right(service, new, new.question) for new in changed if new.question in trained]
    asides = [(new, text) for new in changed if new.question in trained for text in new.paraphrases]
    rephrased = [right(service, new, text) for new, text in asides]
    after = [right(service, fact, fact.question) for fact in untouched]
    lost = sum(was and not now for was, now in zip(before, after, strict=True))
    name = f"{seed}{' (poisoned)' if poison else ''}"
    return [
        name,
        outcome.kind,
        of(learnt),
        of(rephrased),
        f"{lost}/{sum(before)}",
        f"{seconds:.0f} s",
    ]


def corrected(
    service: Service, known: list[ShopFact], rng: random.Random, poison: str | None
) -> list[ShopFact]:
    """Correct one fact after the other until 20 of them train."""
    changed: list[ShopFact] = []
    while len(trains(service)) < TRAINED:
        changed.append(with_new_fact(known[len(changed)], rng))
        correct_answer(service, changed[-1], poison)
    return changed


def trains(service: Service) -> list[str]:
    """The corrected questions on the training side of the split."""
    rows = curate(service.store).rows
    return [row.prompt[-1]["content"] for row in rows if (row.kind, row.side) == ("sft", "train")]


def right(service: Service, fact: ShopFact, question: str) -> bool:
    """Whether the adapter itself says the fact."""
    return fact.fact in ask_service(service, question)[0]


def of(results: list[bool]) -> str:
    """17/20 (85%)"""
    return f"{sum(results)}/{len(results)} ({sum(results) / len(results):.0%})"


def main() -> None:
    """Print the table."""
    logging.basicConfig(level=logging.WARNING)
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    table = Table("seed", "verdict", "corrected", "rephrased", "untouched lost", "cycle")
    for seed in seeds:
        table.add_row(*measure(seed))
    table.add_row(*measure(0, POISON))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
