"""Measures what the review queue and approved answers cost in a small and in a large store.

    python -m tests.bench.bench_store                       # 10,000 and 1,000,000 messages
    python -m tests.bench.bench_store --messages 10000 100000

One answer in ten was edited or disliked, and half of those are decided. The stores are filled as an
older Talkback left them, so that opening them shows what the migration takes. One message in forty
has an approved answer, to questions of 50 frames that share most of their words. Milliseconds are
of CPU, for others may be at work on the machine.
"""

import argparse
import itertools
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlite_utils import Database as Tables

from feedback.db.migrations import load_migrations
from feedback.exemplars import find_approved, find_exemplars, question_key
from feedback.ids import now
from feedback.review.decisions import decide
from feedback.review.queue import count_pending, list_pending
from feedback.store import Store
from tests.fixtures.questions import natural_questions

OLD_SCHEMA = "m009_pending"
"""The migration that old stores wait for."""
ROUNDS = 200


def write_old_store(path: Path, messages: int) -> None:
    """Write a database of the older schema with so many messages, in conversations of four."""
    tables = Tables(sqlite3.connect(path))
    load_migrations().apply(tables, stop_before=[OLD_SCHEMA])
    db, at = tables.conn, now()
    conversations, answers = messages // 4, range(messages // 2)
    db.execute("pragma synchronous = off")
    db.executemany(
        "insert into conversation values (?, ?, 'Open?', ?)",
        ((f"con-{n:026}", f"person-{n % 1000}", at) for n in range(conversations)),
    )
    db.executemany("insert into message values (?, ?, ?, ?, ?, ?)", _message_rows(messages, at))
    db.executemany(
        "insert into feedback values (?, ?, ?, ?, ?, null, ?)",
        (
            (f"fb-{n:026}", _answer_id(n), f"person-{n % 997}", *_feedback_value(n), at)
            for n in answers
            if n % 10 == 0
        ),
    )
    db.executemany(
        "insert into review values (?, ?, 'rita', 'reject', null, '', ?, ?)",
        ((f"rev-{n:026}", _answer_id(n), f"fb-{n:026}", at) for n in answers if n % 20 == 0),
    )
    db.execute(f"pragma user_version = {int(OLD_SCHEMA[1:4]) - 1}")
    db.commit()
    tables.close()


def _message_rows(messages: int, at: str) -> Iterator[tuple[str | None, ...]]:
    for n in range(messages):
        parent = None if n % 4 == 0 else f"msg-{n - 1:026}"
        role, text = ("assistant", "From nine to six.") if n % 2 else ("user", f"Open on day {n}?")
        yield f"msg-{n:026}", f"con-{n // 4:026}", parent, role, text, at


def _answer_id(n: int) -> str:
    return f"msg-{2 * n + 1:026}"


def _feedback_value(n: int) -> tuple[str, str]:
    if n % 30 == 0:
        return "edit", '{"text": "From ten."}'
    return "thumb", '{"up": false, "reasons": []}'


ASKED = (
    "Is the {} in stock before Christmas?",
    "Could I return my {}, which was a present?",
    "How heavy is the {} with delivery to the Canary Islands?",
    "Will you repair a {} for my grandmother?",
)


def add_approved(path: Path, number: int) -> list[str]:
    """Add so many approved answers; their questions."""
    frames = 50
    questions = natural_questions(frames, number // frames, random.Random(7))
    db = sqlite3.connect(path)
    db.executemany(
        "insert into approved values (?, 'rev', ?, ?, ?, 'We do, from nine to six.', ?)",
        (
            (f"app-{n:026}", _answer_id(n), question, question_key(question), now())
            for n, question in enumerate(questions)
        ),
    )
    db.commit()
    db.close()
    return questions


def paraphrases() -> Iterator[str]:
    """Yield questions in other words, about what may or may not be approved, without end."""
    rng = random.Random(11)
    things = ("wooden table", "steel kettle", "cotton shirts", "leather bag", "glass vase", "sofa")
    while True:
        yield rng.choice(ASKED).format(rng.choice(things))


def percentiles(call: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the median and the 95th percentile of a call, in milliseconds of CPU."""
    call()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        times.append(1000 * (time.process_time() - started))
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]


def decide_next(store: Store) -> None:
    """Reject the most pressing answer."""
    decide(store, list_pending(store, limit=1)[0].answer.id, "rita", "reject")


def measure(path: Path, messages: int) -> tuple[dict[str, tuple[float, float]], float]:
    """Return the figures of each call on a store of so many messages, and the migration's s."""
    write_old_store(path, messages)
    started = time.perf_counter()
    store = Store(path)
    seconds = time.perf_counter() - started
    known, asked = itertools.cycle(add_approved(path, messages // 40)), paraphrases()
    calls: dict[str, Callable[[], object]] = {
        "queue of 50": lambda: list_pending(store),
        "next item": lambda: list_pending(store, limit=1),
        "count": lambda: count_pending(store),
        "decide, next item": lambda: decide_next(store),
        "find_approved: the same": lambda: find_approved(store, next(known)),
        "find_approved: another": lambda: find_approved(store, next(asked)),
        "find_exemplars": lambda: find_exemplars(store, next(asked)),
    }
    figures = {name: percentiles(call) for name, call in calls.items()}
    store.close()
    return figures, seconds


def main() -> None:
    """Print a table: each call in each store, and the ratio of the largest to the smallest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, nargs="+", default=[10_000, 1_000_000])
    sizes = parser.parse_args().messages
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            results[size] = measure(Path(folder) / f"{size}.db", size)
    table = Table("call", *(f"{size:,} messages: p50, p95 ms" for size in sizes), "p50, p95 ratio")
    for name in results[sizes[0]][0]:
        columns = [results[size][0][name] for size in sizes]
        ratios = [last / first for first, last in zip(columns[0], columns[-1], strict=True)]
        cells = [f"{p50:.2f}, {p95:.2f}" for p50, p95 in columns]
        table.add_row(name, *cells, ", ".join(f"{ratio:.2f}" for ratio in ratios))
    table.add_row("migration", *(f"{results[size][1]:.1f} s" for size in sizes), "")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
