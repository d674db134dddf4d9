"""Copies a database before a migration, and puts the copy back without losing what came since."""

import os
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from feedback.backup.downgrade import downgrade
from feedback.backup.restore import RestoreError
from feedback.db import database, migrations
from feedback.db.database import StoreError
from feedback.db.database_copy import copy_database, newest_copy, read_schema
from feedback.db.migrations import SCHEMA_VERSION
from feedback.home.in_use import HomeInUseError, use_home
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.command_line import run_talkback
from tests.fixtures.conversations import add_answer, add_thumbs_down
from tests.fixtures.old_schemas import make_database


def rows_of(file: Path, table: str, columns: str = "*") -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(f"select {columns} from {table} order by rowid").fetchall()


@pytest.fixture
def old(home: Home) -> Home:
    """A home whose database is one step behind."""
    make_database(home.db, SCHEMA_VERSION - 1)
    home.db.chmod(0o600)
    return home


@pytest.mark.parametrize("schema", range(1, SCHEMA_VERSION + 1))
def test_a_home_of_each_schema_so_far_opens_with_its_rows_and_goes_back(
    home: Home, schema: int
) -> None:
    counts = make_database(home.db, schema)
    before = {
        table: rows_of(home.db, table, "rowid, *")
        for table in counts
        if table not in ("message", "speaker", "feedback", "cycle")  # which get more columns
    }
    store = Store(home.db)
    for table, count in counts.items():
        assert store.row(f"select count(*) from {table}")[0] == count, table  # type: ignore[index]
    assert add_answer(store, "Still there?")
    store.close()
    for table, rows in before.items():
        now = rows_of(home.db, table, "rowid, *")
        assert now[: len(rows)] == rows, table
    copy = newest_copy(home.db)
    if schema == SCHEMA_VERSION:
        assert copy is None
        return
    assert copy == home.db.with_name(f"talkback.db.before-m{schema + 1:03}")
    mode = home.db.stat().st_mode
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    left_out = downgrade(home).left_out
    assert read_schema(home.db) == schema and home.db.stat().st_mode == mode
    assert left_out["conversation"] == 1 and left_out["message"] == 2
    assert all(rows_of(home.db, table, "rowid, *") == rows for table, rows in before.items())


def test_a_copy_is_its_owners_alone_and_a_new_or_empty_database_needs_none(
    old: Home, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        Store(old.db).close()
    finally:
        os.umask(before)
    copy = newest_copy(old.db)
    assert copy is not None and stat.S_IMODE(copy.stat().st_mode) == 0o600
    Store(tmp_path / "new.db").close()
    Store(tmp_path / "new.db").close()
    assert [path.name for path in tmp_path.glob("new*")] == ["new.db"]
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        connection.execute(f"pragma user_version = {SCHEMA_VERSION - 1}")
    Store(tmp_path / "new.db").close()
    assert newest_copy(tmp_path / "new.db") is None


def test_many_that_open_it_at_once_make_one_copy_of_all_rows(old: Home) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: Store(old.db), range(8)))
    for store in stores:
        store.close()
    copies = [path.name for path in old.root.iterdir() if "before" in path.name]
    assert copies == [f"talkback.db.before-m{SCHEMA_VERSION:03}"]
    assert len(rows_of(old.root / copies[0], "message")) == 2


def test_what_is_written_until_the_migration_is_in_the_copy(
    old: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older server still writes: its row is in before the copy is made, or after the step."""
    copying = threading.Event()
    done = threading.Event()

    def write() -> None:
        copying.wait(10)
        with closing(sqlite3.connect(old.db, timeout=10)) as connection, connection:
            connection.execute("insert into conversation values ('con-2', 'bob', 'Late', '')")
        done.set()

    def copy_late(path: Path, first_step: int) -> Path:
        copying.set()
        assert not done.wait(0.3), "a row was written between copy and migration"
        return copy(path, first_step)

    copy = database.copy_before_migration
    monkeypatch.setattr(database, "copy_before_migration", copy_late)
    writer = threading.Thread(target=write)
    writer.start()
    store = Store(old.db)
    writer.join()
    assert store.row("select count(*) from conversation")[0] == 2  # type: ignore[index]
    store.close()
    kept = newest_copy(old.db)
    assert kept is not None and len(rows_of(kept, "conversation")) == 1
    assert downgrade(old).left_out == {"conversation": 1}


def test_a_migration_that_cannot_copy_first_changes_nothing(
    old: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, first_step: int) -> Path:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(database, "copy_before_migration", fail)
    with pytest.raises(StoreError, match="free some space"):
        Store(old.db)
    assert read_schema(old.db) == SCHEMA_VERSION - 1


def test_the_copy_takes_the_place_of_those_from_before_earlier_migrations(old: Home) -> None:
    older = old.db.with_name("talkback.db.before-m002")
    older.write_bytes(b"from before an earlier migration")
    Store(old.db).close()
    assert newest_copy(old.db) == old.db.with_name(f"talkback.db.before-m{SCHEMA_VERSION:03}")
    assert not older.exists()


def test_the_copy_of_a_migration_that_failed_is_made_anew(old: Home) -> None:
    stale = old.db.with_name(f"talkback.db.before-m{SCHEMA_VERSION:03}")
    copy_database(old.db, stale)
    with closing(sqlite3.connect(old.db)) as connection, connection:
        connection.execute("insert into conversation values ('con-2', 'bob', 'Late', '')")
    Store(old.db).close()
    assert len(rows_of(stale, "conversation")) == 2


def test_the_command_says_what_it_leaves_out_and_keeps_the_newer_database(old: Home) -> None:
    store = Store(old.db)
    add_thumbs_down(store, add_answer(store, "Since then?"), "bob", "cleo")
    store.close()
    done = run_talkback(old, "downgrade")
    assert done.returncode == 0, done.stderr
    assert f"schema {SCHEMA_VERSION - 1} again" in done.stdout
    for left_out in ("conversation 1", "message 2", "speaker 1", "feedback 2"):
        assert left_out in done.stdout
    (aside,) = (path for path in old.root.iterdir() if ".newer-" in path.name)
    assert str(aside) in done.stdout and len(rows_of(aside, "message")) == 4
    assert len(rows_of(old.db, "message")) == 2
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert newest_copy(old.db) is None
    again = run_talkback(old, "downgrade")
    assert again.returncode == 2 and "no copy from before" in again.stderr


def test_it_is_refused_while_somebody_uses_the_database(old: Home) -> None:
    store = Store(old.db)
    add_answer(store, "Since then?")
    with use_home(old), pytest.raises(HomeInUseError, match="stop the server"):
        downgrade(old)
    with pytest.raises(RestoreError, match=r"another process has .* open"):
        downgrade(old)
    with closing(sqlite3.connect(old.db)) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from message").fetchone()
        add_answer(store, "And since?")
        store.close()
        with pytest.raises(RestoreError, match=r"another process has .* open"):
            downgrade(old)
    assert downgrade(old).left_out["message"] == 4


def test_a_copy_that_is_damaged_is_not_put_back(old: Home) -> None:
    Store(old.db).close()
    copy = newest_copy(old.db)
    assert copy is not None
    data = bytearray(copy.read_bytes())
    data[8192:65536] = bytes(65536 - 8192)
    copy.write_bytes(data)
    with pytest.raises(RestoreError, match=r"restore a backup|cannot compare"):
        downgrade(old)
    assert read_schema(old.db) == SCHEMA_VERSION


def test_an_older_talkback_says_which_version_a_newer_database_needs(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next version adds a step; then this one opens its database."""

    def m999_next(db: Any) -> None:
        db.execute("create table next (id text primary key)")

    store = Store(home.db)
    add_answer(store, "Hello?")
    store.close()
    with monkeypatch.context() as newer:
        newer.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, m999_next])
        for module in (migrations, database):
            newer.setattr(module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        newer.setattr("feedback.db.migrations.schema_versions.talkback_version", lambda: "7.1.0")
        Store(home.db).close()
    with pytest.raises(StoreError, match=rf"schema {SCHEMA_VERSION + 1}.* to 7\.1\.0 or newer"):
        Store(home.db)
    assert downgrade(home).left_out == {}
    assert Store(home.db).counts()["messages"] == 2
