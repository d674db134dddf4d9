"""Opens, reads and writes one SQLite file from many threads and processes.

Every thread has its own connection; every write is a transaction that takes the write lock at once
(``begin immediate``) and is on the disk before it returns, so that what has been acknowledged
survives a ``kill -9`` and a power cut. Threads of a process queue at a lock of ours: SQLite's busy
handler would have them sleep, up to 100 ms at a time, for what takes a millisecond.
"""

import json
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feedback.db.database_copy import copy_before_migration, has_rows
from feedback.db.migrations import SCHEMA_VERSION, migrate
from feedback.db.migrations.schema_versions import find_version
from feedback.db.well_formed import all_well_formed, to_well_formed
from feedback.errors import TalkbackError
from feedback.publish import check_locks, make_file

BUSY_TIMEOUT_SECONDS = 10
"""How long a write waits for others, of this process and then of others."""


class StoreError(TalkbackError):
    """Reports a database that cannot be opened, read or written; names the file and what to do."""


class Connection(sqlite3.Connection):
    """Adds to a connection transactions with savepoints, and inserts by column names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.writing = False
        """Whether a transaction has begun, even if SQLite has rolled it back meanwhile."""
        self._rollback_callbacks: list[Callable[[], object]] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in a transaction: committed when it ends, rolled back when it raises."""
        self.execute("begin immediate")
        self.writing = True
        try:
            yield
            self._check_alive()
            self.commit()
        except BaseException:
            self.rollback()
            self._run_rollback_callbacks(0)
            raise
        finally:
            self.writing = False
            self._rollback_callbacks.clear()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Run the block in a savepoint: kept with the transaction, or rolled back alone."""
        self._check_alive()
        before = len(self._rollback_callbacks)
        self.execute("savepoint part")
        try:
            yield
        except BaseException:
            if self.in_transaction:
                self.execute("rollback to part")
                self.execute("release part")
            self._run_rollback_callbacks(before)
            raise
        self.execute("release part")

    def on_rollback(self, callback: Callable[[], object]) -> None:
        """Call `callback` if what this transaction has written so far is rolled back."""
        if self.writing:
            self._rollback_callbacks.append(callback)

    def _check_alive(self) -> None:
        if not self.in_transaction:  # a full disk makes SQLite undo all of it
            raise sqlite3.OperationalError("the transaction was undone")

    def _run_rollback_callbacks(self, first: int) -> None:
        while len(self._rollback_callbacks) > first:
            self._rollback_callbacks.pop()()

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Execute a statement; dicts and lists become JSON, and all text is well-formed."""
        if isinstance(parameters, Mapping):
            bound: Any = {name: _to_sqlite(value) for name, value in parameters.items()}
        else:
            bound = [_to_sqlite(value) for value in parameters]
        return super().execute(sql, bound)

    def insert(self, table: str, row: Mapping[str, object]) -> None:
        """Insert one row."""
        columns = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" * len(row))
        values = list(row.values())
        self.execute(f"insert into {table} ({columns}) values ({marks})", values)


class _ThreadConnection:
    """Closes a thread's connection as soon as the thread ends. (A connection itself waits for the
    garbage collector, being part of a reference cycle.)"""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


def _to_sqlite(value: object) -> object:
    if isinstance(value, str):
        return to_well_formed(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(all_well_formed(value), ensure_ascii=False)
    return value


class Database:
    """Reads and writes the file at ``path``, which is made and migrated when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._write_lock = threading.Lock()
        self._thread_connections: weakref.WeakSet[_ThreadConnection] = weakref.WeakSet()
        check_locks(path.parent)
        with self._explain_errors():
            self._make_file()
            self._migrate()

    def rows(self, sql: str, args: tuple[object, ...] | Mapping[str, object] = ()) -> list[Any]:
        """Return all rows of a query, each a ``sqlite3.Row``."""
        with self._explain_errors():
            return self._connection().execute(sql, args).fetchall()

    def row(self, sql: str, args: tuple[object, ...] | Mapping[str, object] = ()) -> Any | None:
        """Return the first row of a query, or None."""
        with self._explain_errors():
            return self._connection().execute(sql, args).fetchone()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Run the block in one transaction: when it ends all is kept, durably, or nothing is.

        Inside another ``write`` of the same thread it is part of that one: kept with it, undone
        with it or alone. Reads through ``rows`` and ``row`` in the block see what it has written
        so far.
        """
        with self._explain_errors():
            connection = self._connection()
            if connection.writing:
                with connection.savepoint():
                    yield connection
                return
            with self._exclusive(), connection.transaction():
                yield connection

    def on_rollback(self, callback: Callable[[], object]) -> None:
        """Call `callback` if what this thread has written is rolled back with its transaction."""
        self._connection().on_rollback(callback)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the write lock of this process; SQLite's own is between processes."""
        if not self._write_lock.acquire(timeout=BUSY_TIMEOUT_SECONDS):
            raise sqlite3.OperationalError("database is locked")
        try:
            yield
        finally:
            self._write_lock.release()

    def check_writable(self) -> None:
        """Raise StoreError when nothing could be kept now: a real write that changes nothing."""
        with self.write() as db:
            version: int = db.execute("pragma user_version").fetchone()[0]
            db.execute(f"pragma user_version = {version}")

    def close(self) -> None:
        """Close the connections of all threads."""
        for handle in list(self._thread_connections):
            handle.connection.close()
        self._local = threading.local()

    def _connection(self) -> Connection:
        handle: _ThreadConnection | None = getattr(self._local, "handle", None)
        if handle is None:
            handle = self._local.handle = _ThreadConnection(self._connect())
            self._thread_connections.add(handle)
        return handle.connection

    def _connect(self) -> Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        connection.row_factory = sqlite3.Row
        connection.execute("pragma foreign_keys = on")
        connection.execute("pragma synchronous = full")
        return connection

    def _make_file(self) -> None:
        """Make the file, whose permissions SQLite gives to its journals too."""
        try:
            make_file(self.path)
        except OSError as error:
            raise sqlite3.OperationalError(f"unable to open, {error.strerror}") from error

    def _migrate(self) -> None:
        connection = self._connection()
        version: int = connection.execute("pragma user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StoreError(explain_newer_schema(self.path, connection, version))
        if version < SCHEMA_VERSION:
            _enable_wal(connection)
            migrate(connection, self._keep_copy)

    def _keep_copy(self, first_step: int) -> None:
        """Copy the database before a migration, unless there is nothing in it to lose."""
        if has_rows(self._connection()):
            copy_before_migration(self.path, first_step)

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Raise SQLite's errors about the file as StoreError, with the file's name and a remedy."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            remedy = _remedy(str(error))
            if remedy is None:
                raise
            raise StoreError(f"{self.path}: {error}; {remedy}") from error


def explain_newer_schema(path: Path, connection: sqlite3.Connection, schema: int) -> str:
    """Return what to do about a database whose schema this Talkback does not know."""
    version = find_version(connection, schema)
    return (
        f"{path} was written by a newer Talkback (schema {schema}, this one knows "
        f"{SCHEMA_VERSION}); upgrade Talkback{f' to {version} or newer' if version else ''}, put "
        "back the database from before with its talkback downgrade, or restore a backup"
    )


def _enable_wal(connection: Connection) -> None:
    """Put the file in WAL mode; SQLite's busy timeout does not cover two that do so at once."""
    last = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > last:
                raise
            time.sleep(0.01)


def _remedy(complaint: str) -> str | None:
    remedies = {
        "database or disk is full": "nothing of this was saved; free some space and try again",
        "unable to open": "does the folder exist, and may this user write there?",
        "readonly": "let this user write the file and its folder",
        "not a database": "move it away, or restore a backup",
        "malformed": "restore a backup",
        "locked": f"another has held it for {BUSY_TIMEOUT_SECONDS} s; try again",
        "disk I/O error": "nothing of this was saved; check the disk, and this user's limit of "
        "file sizes (ulimit -f)",
        "transaction was undone": "nothing of this was saved; check the disk",
    }
    return next((remedy for words, remedy in remedies.items() if words in complaint), None)
