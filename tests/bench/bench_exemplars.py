"""Measures how often a question finds the right approved answer, and how often a misleading one.

    python -m tests.bench.bench_exemplars              # three seeds, and 20,000 approved answers
    python -m tests.bench.bench_exemplars --seeds 0 1 2 3 4 5 --large 0

The data are public (`public_data.py`): of 20 intents of Bitext's customer support one phrasing each
is approved with its answer, and 120 other phrasings are asked; the other 7 intents are strangers of
the same shop, MT-Bench and Vicuna are about anything else. Full-text search alone, as it was, is
measured in the same run.
"""

import argparse
import random
import sqlite3
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from feedback import exemplars
from feedback.exemplars import find_exemplars, find_similar, question_key
from feedback.matching.embedding import StaticEmbedder
from feedback.store import Store
from tests.bench.bench_store import add_approved, paraphrases, percentiles
from tests.fixtures import public_data
from tests.fixtures.phrasings import OTHERS, Phrasing, draw_phrasings, phrasings_by_intent

THRESHOLDS = (0.0, 0.38, 0.4, StaticEmbedder.threshold, 0.45, 0.5, 0.55)
LIKENESS = Path(__file__).parents[1] / "fixtures" / "likeness.toml"
"""Its pairs of opposites are one or two letters or words apart, in several languages."""
SIMILARITIES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Questions:
    """Holds what is asked where 20 phrasings are approved."""

    others: list[Phrasing]
    """Other phrasings of what is approved, with their answers."""
    strangers: list[str]
    """Questions to the same shop about what is not approved."""
    general: list[str]
    """Questions about anything, of MT-Bench and Vicuna."""


@contextmanager
def drawn_stores(folder: Path, seeds: Sequence[int]) -> Iterator[list[tuple[Store, Questions]]]:
    """Yield a store with 20 approved answers for each seed, and what is asked of it."""
    files = ("mt_bench_question.jsonl", "vicuna_bench_question.jsonl")
    general = [turns[0] for name in files for turns in public_data.load_first_turns(name)]
    made = []
    for seed in seeds:
        drawn, every, rng = draw_phrasings(seed), phrasings_by_intent(), random.Random(seed)
        store = Store(folder / f"{seed}.db")
        approve(store, [phrasings[0] for phrasings in drawn.values()])
        others = [one for phrasings in drawn.values() for one in phrasings[1:]]
        strangers = [
            one.question
            for intent in sorted(set(every) - set(drawn))
            for one in rng.sample(every[intent], OTHERS)
        ]
        made.append((store, Questions(others, strangers, general)))
    yield made
    for store, _ in made:
        store.close()


def approve(store: Store, phrasings: Sequence[Phrasing]) -> None:
    """Approve these answers to these questions."""
    db = sqlite3.connect(store.path)
    db.executemany(
        "insert into approved values (?, 'rev', 'msg', ?, ?, ?, '')",
        (
            (f"app-{n}", one.question, question_key(one.question), one.answer)
            for n, one in enumerate(phrasings)
        ),
    )
    db.commit()
    db.close()


@contextmanager
def full_text_alone() -> Iterator[None]:
    """Find by words alone, as where no embedder knows a question."""
    find_neighbours = exemplars.find_neighbours
    exemplars.find_neighbours = lambda *_: None
    try:
        yield
    finally:
        exemplars.find_neighbours = find_neighbours


@contextmanager
def threshold_of(score: float) -> Iterator[None]:
    """Take for exemplars what has at least this score."""
    before = StaticEmbedder.threshold
    StaticEmbedder.threshold = score
    try:
        yield
    finally:
        StaticEmbedder.threshold = before


def percent(part: float, whole: float) -> str:
    """Return a share as people read it."""
    return f"{100 * part / max(whole, 1):.1f}%"


def measure_exemplars(name: str, stores: list[tuple[Store, Questions]]) -> list[str]:
    """Return a row: found first, by seed and together; among three; misled; strangers; general."""
    first, among, misled, strangers, general = [], 0, 0, 0, 0
    asked = unlike = 0
    for store, questions in stores:
        first.append(0)
        for one in questions.others:
            found = [each.answer for each in find_exemplars(store, one.question)]
            first[-1] += found[:1] == [one.answer]
            among += one.answer in found
            misled += bool(found) and one.answer not in found
        asked += len(questions.others)
        unlike += len(questions.strangers)
        strangers += sum(bool(find_exemplars(store, text)) for text in questions.strangers)
        general += sum(bool(find_exemplars(store, text)) for text in questions.general)
    return [
        name,
        " ".join(map(str, first)),
        percent(sum(first), asked),
        percent(among, asked),
        percent(misled, asked),
        percent(strangers, unlike),
        percent(general, sum(len(questions.general) for _, questions in stores)),
    ]


@contextmanager
def opposites_store(folder: Path) -> Iterator[tuple[Store, list[str]]]:
    """Yield a store with one question approved of each pair of opposites, and the others."""
    pairs = tomllib.loads(LIKENESS.read_text(encoding="utf-8"))["opposites"]
    store = Store(folder / "opposites.db")
    approve(store, [Phrasing(question, "Yes.") for question, _ in pairs])
    yield store, [opposite for _, opposite in pairs]
    store.close()


def measure_given(
    threshold: float,
    stores: list[tuple[Store, Questions]],
    opposites: tuple[Store, list[str]],
) -> list[str]:
    """Return a row: of other phrasings the share that gets the right answer as it stands, and the
    wrong one; of strangers, general questions and opposites the share that gets any."""
    right = wrong = strangers = general = 0
    for store, questions in stores:
        for one in questions.others:
            found = find_similar(store, one.question)
            if found is not None and found.similarity >= threshold:
                right += found.approved.answer == one.answer
                wrong += found.approved.answer != one.answer
        strangers += count_given(store, questions.strangers, threshold)
        general += count_given(store, questions.general, threshold)
    asked = sum(len(questions.others) for _, questions in stores)
    unlike = sum(len(questions.strangers) for _, questions in stores)
    anything = sum(len(questions.general) for _, questions in stores)
    opposite = count_given(*opposites, threshold), len(opposites[1])
    shares = (right, asked), (wrong, asked), (strangers, unlike), (general, anything), opposite
    return [f"{threshold:.2f}", *(percent(part, whole) for part, whole in shares)]


def count_given(store: Store, questions: Sequence[str], threshold: float) -> int:
    """Count the questions that would get an approved answer as it stands."""
    found = (find_similar(store, text) for text in questions)
    return sum(one is not None and one.similarity >= threshold for one in found)


def measure_large(folder: Path, number: int) -> Table:
    """Return what a question costs among so many approved answers, in milliseconds of CPU."""
    store = Store(folder / "large.db")
    add_approved(store.path, number)
    asked = paraphrases()
    table = Table("", "p50, p95 ms", title=f"{number:,} approved answers")

    def find() -> object:
        return find_exemplars(store, next(asked))

    with full_text_alone():
        table.add_row("full-text search alone", "{:.1f}, {:.1f}".format(*percentiles(find)))
    waited = []
    rows = "select count(*) from approved_vector"
    while store.rows(rows)[0][0] < number:
        began = time.perf_counter()
        find()
        waited.append(1000 * (time.perf_counter() - began))
    table.add_row(f"the first {len(waited)}, which fill in", f"at most {max(waited):.0f} (wall)")
    table.add_row("vectors", "{:.1f}, {:.1f}".format(*percentiles(find)))
    other = Store(store.path)
    began = time.perf_counter()
    find_exemplars(other, next(asked))
    table.add_row("first of another process", f"{1000 * (time.perf_counter() - began):.0f} (wall)")
    for each in (store, other):
        each.close()
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--large", type=int, default=20_000, help="0: not measured")
    options = parser.parse_args()
    console = Console(width=110)
    found = Table("", "first, by seed", "first", "among 3", "misled", "strangers", "general")
    given = Table("similarity", "given right", "given wrong", "strangers", "general", "opposites")
    with tempfile.TemporaryDirectory() as temp:
        with (
            drawn_stores(Path(temp), options.seeds) as stores,
            opposites_store(Path(temp)) as opposites,
        ):
            with full_text_alone():
                found.add_row(*measure_exemplars("full-text search alone", stores))
            for score in THRESHOLDS:
                mark = " (default)" if score == StaticEmbedder.threshold else ""
                with threshold_of(score):
                    found.add_row(*measure_exemplars(f"vectors, from {score}{mark}", stores))
            for similarity in SIMILARITIES:
                given.add_row(*measure_given(similarity, stores, opposites))
        console.print(found, given)
        if options.large:
            console.print(measure_large(Path(temp), options.large))


if __name__ == "__main__":
    main()
