"""Writes that share a transaction: durable together, undone alone, and never silently lost."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from feedback.db.database import Connection, StoreError
from feedback.db.group_commit import GroupCommit
from feedback.messages import BadMessageError
from feedback.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


@pytest.fixture
def keeper(store: Store) -> Iterator[GroupCommit]:
    keeper = GroupCommit(store)
    yield keeper
    keeper.shutdown()


class Gate:
    """A work that holds the keeper, so that others gather behind it."""

    def __init__(self, keeper: GroupCommit) -> None:
        self._reached, self._open = threading.Event(), threading.Event()
        keeper.submit(self._wait)
        assert self._reached.wait(10)

    def _wait(self) -> None:
        self._reached.set()
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


def counted(store: Store) -> list[str]:
    """The statements that end a transaction, from now on."""
    seen: list[str] = []
    connect = store._connect

    def traced() -> Connection:
        connection = connect()
        connection.set_trace_callback(lambda sql: seen.append(sql) if sql == "COMMIT" else None)
        return connection

    store._connect = traced  # type: ignore[method-assign]
    return seen


def start(keeper: GroupCommit, store: Store, person: str) -> "Future[Any]":
    return keeper.submit(store.start_conversation, person, "When do you open?")


def people(store: Store) -> list[str]:
    return [row["person"] for row in store.rows("select person from conversation order by rowid")]


def test_what_gathers_is_one_transaction_in_its_order(store: Store) -> None:
    commits = counted(store)
    keeper = GroupCommit(store)
    gate = Gate(keeper)
    futures = [start(keeper, store, f"p{n}") for n in range(16)]
    gate.open()
    talks = [future.result(10) for future in futures]
    keeper.shutdown()
    assert [store.conversation(talk).person for talk in talks] == [f"p{n}" for n in range(16)]
    assert people(store) == [f"p{n}" for n in range(16)]
    assert len(commits) == 2  # the gate's, and that of all the others


def test_a_future_is_done_only_when_others_can_read_it(store: Store, keeper: GroupCommit) -> None:
    other = sqlite3.connect(store.path)
    for number in range(50):
        start(keeper, store, f"p{number}").result(10)
        (count,) = other.execute("select count(*) from conversation").fetchone()
        assert count == number + 1


def test_a_work_that_fails_is_undone_alone(store: Store, keeper: GroupCommit) -> None:
    talk = store.start_conversation("ann", "Hello")

    def half() -> None:
        with store.write():
            store.start_conversation("half", "Hello")
            store.add_message(talk, None, "nobody", "Hello")  # type: ignore[arg-type]

    gate = Gate(keeper)
    before, failing, after = (
        start(keeper, store, "x"),
        keeper.submit(half),
        start(keeper, store, "y"),
    )
    gate.open()
    assert before.result(10) and after.result(10)
    with pytest.raises(BadMessageError, match="nobody"):
        failing.result(10)
    assert people(store) == ["ann", "x", "y"]


def test_when_all_is_undone_all_are_told(
    store: Store, keeper: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    undone: list[str] = []

    def work(name: str) -> None:
        store.start_conversation(name, "Hello")
        store.on_rollback(lambda: undone.append(name))

    def full(_: Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    keeper.submit(work, "kept").result(10)
    gate = Gate(keeper)
    futures = [keeper.submit(work, name) for name in ("x", "y")]
    monkeypatch.setattr(Connection, "commit", full)
    gate.open()
    for future in futures:
        with pytest.raises(StoreError, match=r"disk is full.*free some space"):
            future.result(10)
    assert sorted(undone) == ["x", "y"] and people(store) == ["kept"]
    monkeypatch.undo()
    assert start(keeper, store, "z").result(10) and people(store) == ["kept", "z"]
    assert sorted(undone) == ["x", "y"]


def test_a_full_disk_in_the_middle_tells_all_that_shared_the_transaction(
    store: Store, keeper: GroupCommit
) -> None:
    """SQLite then undoes the whole by itself, and goes on as if there had been none."""
    gate = Gate(keeper)
    first = start(keeper, store, "x")

    def fill() -> None:
        with store.write() as db:
            db.execute("rollback")
            raise sqlite3.OperationalError("database or disk is full")

    middle, last = keeper.submit(fill), start(keeper, store, "y")
    gate.open()
    for future in (first, middle, last):
        with pytest.raises(StoreError):
            future.result(10)
    assert people(store) == []
    assert start(keeper, store, "z").result(10) and people(store) == ["z"]


def test_a_cancelled_work_is_not_done(store: Store, keeper: GroupCommit) -> None:
    gate = Gate(keeper)
    unwanted, wanted = start(keeper, store, "x"), start(keeper, store, "y")
    assert unwanted.cancel()
    gate.open()
    assert wanted.result(10) and people(store) == ["y"]


def test_the_end_waits_for_what_was_submitted(store: Store) -> None:
    keeper = GroupCommit(store)
    gate = Gate(keeper)
    futures = [start(keeper, store, f"p{n}") for n in range(3)]
    ending = threading.Thread(target=keeper.shutdown)
    ending.start()
    gate.open()
    ending.join(10)
    assert all(future.done() for future in futures) and len(people(store)) == 3
    with pytest.raises(StoreError, match="stopping"):
        start(keeper, store, "late").result(10)
