"""Finds the approved answers that lie near a question, by vectors that the database keeps.

A vector is made once, by the first process that finds it missing, and read by all others. In memory
they are one matrix: of 20,000 the nearest are found in a millisecond.
"""

import json
import logging
import math
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from feedback.db.database import StoreError
from feedback.matching.embedding import (
    Embedder,
    EmbedderError,
    Vector,
    Vectors,
    load_static_embedder,
    to_units,
)
from feedback.matching.follow_ups import TURN_SEPARATOR
from feedback.store import Store

log = logging.getLogger("talkback")

FILL_SECONDS = 0.1
"""How long a question waits, at most, for missing vectors of others to be made."""
ANSWER_WEIGHT = 0.8
"""How much an answer counts in what an approved question is about; the question itself has 1."""
NEAREST = (16, 128, 1000)
"""How many of the nearest are looked at first, and how many where too few of those are in use."""
RETRY_SECONDS = 60
"""How long nothing is filled in after a failure."""


@dataclass(frozen=True)
class Neighbours:
    """Holds what lies near a question: ``ids`` of approved answers and their ``cosines``."""

    embedder: Embedder
    vector: Vector
    ids: Sequence[str]
    cosines: Vector
    complete: bool
    """Whether all approved answers have a vector."""

    def nearest_first(self) -> Iterator[dict[str, float]]:
        """Yield the cosines of the nearest by id, the nearest first, in parts."""
        taken = 0
        for count in NEAREST:
            count = min(count, len(self.cosines))
            if count > taken:
                top = np.argpartition(-self.cosines, count - 1)[:count]
                top = top[np.argsort(-self.cosines[top], kind="stable")][taken:]
                yield {self.ids[n]: float(self.cosines[n]) for n in top}
                taken = count


class VectorSearch:
    """Holds the vectors of one store that one embedder has made; safe for threads."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._ids: list[str] = []
        self._matrix: Vectors = np.zeros((0, 0), np.float32)
        self._last = 0
        """The number of the last row that was read."""
        self._checked: int | None = None
        """The newest approved answer when none lacked a vector."""
        self._read_lock, self._fill_lock = threading.Lock(), threading.Lock()
        self._retry_at = 0.0
        self._last_question: tuple[str | None, Vector] = None, np.zeros(0, np.float32)

    def find(self, store: Store, question: str) -> Neighbours | None:
        """Return what lies near a question; None where the embedder knows nothing of it.

        Makes some of the missing vectors first. Raises EmbedderError.
        """
        vector = self._embed_question(question)
        if not vector.any():
            return None
        complete = self.fill(store, FILL_SECONDS)
        ids, matrix = self._read(store)
        if len(ids) and matrix.shape[1] != len(vector):
            raise EmbedderError(
                f"{self.embedder.name} gave vectors of {matrix.shape[1]} numbers before and of "
                f"{len(vector)} now; name the new model in [embedder] model"
            )
        cosines = matrix @ vector if len(ids) else np.zeros(0, np.float32)
        return Neighbours(self.embedder, vector, ids, cosines, complete)

    def _embed_question(self, question: str) -> Vector:
        """Return its vector; a turn that looks for two things embeds its question once."""
        last, vector = self._last_question
        if last != question:
            vector = self.embedder.embed([question])[0]
            self._last_question = question, vector
        return vector

    def fill(self, store: Store, seconds: float) -> bool:
        """Make missing vectors for so long, the newest first; tell whether none is missing now."""
        newest = int(store.rows("select coalesce(max(rowid), 0) from approved")[0][0])
        if newest == self._checked:
            return True
        if time.monotonic() < self._retry_at or not self._fill_lock.acquire(blocking=False):
            return False
        try:
            return self._fill(store, newest, time.monotonic() + seconds)
        except (EmbedderError, StoreError, sqlite3.Error) as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            log.warning("approved answers are found by their words alone: %s", error)
            return False
        finally:
            self._fill_lock.release()

    def _fill(self, store: Store, newest: int, until: float) -> bool:
        # Rowids come again after an erasure and change in a VACUUM: then all are looked at.
        since = self._checked if self._checked is not None and newest > self._checked else 0
        while True:
            missing = store.rows(
                """select id, question, answer from approved a where a.rowid > ?
                and instr(question_key, ?) = 0
                and id not in (select approved_id from withdrawal)
                and not exists (select 1 from approved_vector
                    where approved_id = a.id and embedder = ?)
                order by a.rowid desc limit ?""",
                (since, TURN_SEPARATOR, self.embedder.name, self.embedder.batch_size),
            )
            if missing:
                self._write(store, missing)
            if len(missing) < self.embedder.batch_size:
                self._checked = newest
                return True
            if time.monotonic() > until:
                return False

    def _write(self, store: Store, approved: Sequence[sqlite3.Row]) -> None:
        texts = [row[column] for column in ("question", "answer") for row in approved]
        vectors = self.embedder.embed(texts).astype(np.float16)
        questions, answers = vectors[: len(approved)], vectors[len(approved) :]
        with store.write() as db:
            for row, question, answer in zip(approved, questions, answers, strict=True):
                # Another process may have been faster, or the answer erased meanwhile.
                db.execute(
                    """insert or ignore into approved_vector
                    (approved_id, embedder, question, answer)
                    select id, ?, ?, ? from approved where id = ?""",
                    (self.embedder.name, question.tobytes(), answer.tobytes(), row["id"]),
                )

    def _read(self, store: Store) -> tuple[list[str], Vectors]:
        """Return the ids and their vectors, shape (ids, dimensions), with those that came since."""
        with self._read_lock:
            rows = store.rows(
                """select number, approved_id, question, answer from approved_vector
                where number > ? and embedder = ?
                and approved_id not in (select approved_id from withdrawal) order by number""",
                (self._last, self.embedder.name),
            )
            if rows:
                self._last = rows[-1]["number"]
                size = len(rows[0]["question"]) if not self._ids else 2 * self._matrix.shape[1]
                rows = [row for row in rows if len(row["question"]) == size]
                self._append(
                    [row["approved_id"] for row in rows],
                    _units_of(b"".join(row["question"] for row in rows), size // 2),
                    _units_of(b"".join(row["answer"] for row in rows), size // 2),
                )
            return self._ids, self._matrix[: len(self._ids)]

    def _append(self, ids: list[str], questions: Vectors, answers: Vectors) -> None:
        """Append rows between a question's vector and its answer's, as long as the question's."""
        lengths = np.linalg.norm(questions, axis=1, keepdims=True)
        rows = to_units(questions + ANSWER_WEIGHT * answers) * lengths
        start, end = len(self._ids), len(self._ids) + len(ids)
        if end > len(self._matrix):  # others may be reading the old one
            grown = np.zeros((max(end, 2 * start), rows.shape[1]), np.float32)
            if start:
                grown[:start] = self._matrix[:start]
            self._matrix = grown
        self._matrix[start:end] = rows
        self._ids += ids


def _units_of(blob: bytes, dimensions: int) -> Vectors:
    halves = np.frombuffer(blob, np.float16).reshape(-1, dimensions)
    return np.asarray(halves, np.float32)


_searches: weakref.WeakKeyDictionary[Store, dict[str, VectorSearch]] = weakref.WeakKeyDictionary()
_searches_lock = threading.Lock()


def find_neighbours(store: Store, question: str, embedder: Embedder | None) -> Neighbours | None:
    """Return what lies near a question by this embedder, or by the one that is always there where
    it fails or is None; None where neither knows the question."""
    for chosen in (embedder, None):
        try:
            search = vector_search(store, chosen or load_static_embedder())
            return search.find(store, question)
        except EmbedderError as error:
            _warn_once(str(error))
    return None


def fill_all(store: Store, embedder: Embedder | None) -> None:
    """Make all missing vectors, however long it takes."""
    try:
        vector_search(store, embedder or load_static_embedder()).fill(store, math.inf)
    except EmbedderError as error:
        _warn_once(str(error))


def vector_search(store: Store, embedder: Embedder) -> VectorSearch:
    """Return the search of a store by an embedder, the same one each time."""
    with _searches_lock:
        of_store = _searches.setdefault(store, {})
        return of_store.setdefault(embedder.name, VectorSearch(embedder))


_warned: set[str] = set()


def _warn_once(problem: str) -> None:
    if problem not in _warned:
        _warned.add(problem)
        log.warning("%s", problem)


def question_cosines(
    store: Store, neighbours: Neighbours | None, ids: Sequence[str]
) -> dict[str, float]:
    """Return the cosine of the question and each of these approved questions without its answer."""
    if neighbours is None:
        return {}
    rows = store.rows(
        """select approved_id, question from approved_vector
        where embedder = ? and approved_id in (select value from json_each(?))""",
        (neighbours.embedder.name, json.dumps(list(ids))),
    )
    return {
        row["approved_id"]: float(
            np.frombuffer(row["question"], np.float16).astype(np.float32) @ neighbours.vector
        )
        for row in rows
        if len(row["question"]) == 2 * len(neighbours.vector)
    }
