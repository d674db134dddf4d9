"""The schema: made from nothing or from an older state, by many at once; rows never change."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlite_utils import Database as Tables

from feedback.db.database import StoreError
from feedback.db.migrations import MIGRATIONS, SCHEMA_VERSION, load_migrations
from feedback.exemplars import find_exemplars
from feedback.store import Store
from tests.fixtures.conversations import add_answer

NAMES = """conversation message speaker feedback review approved withdrawal graduation split
cluster_member adapter promotion report cycle cycle_end event delivery access_key revocation"""
EVENTS = NAMES.split()


def test_an_empty_file_gets_every_table_strict(tmp_path: Path) -> None:
    store = Store(tmp_path / "new.db")
    strict = {row["name"] for row in store.rows("select name from pragma_table_list where strict")}
    assert set(EVENTS) <= strict


def test_the_number_of_migrations_is_the_one_that_opening_expects(tmp_path: Path) -> None:
    tables, migrations = Tables(sqlite3.connect(tmp_path / "new.db")), load_migrations()
    migrations.apply(tables)
    assert len(migrations.applied(tables)) == SCHEMA_VERSION
    tables.close()


def test_every_migration_is_numbered_by_its_place_and_recorded_under_its_name() -> None:
    names = [step.__name__ for step in MIGRATIONS]
    assert [name[:5] for name in names] == [f"m{n:03}_" for n in range(1, SCHEMA_VERSION + 1)]
    tables = Tables(memory=True)
    assert [one.name for one in load_migrations().pending(tables)] == names
    tables.close()


@pytest.mark.parametrize("step", range(1, SCHEMA_VERSION))
def test_an_older_database_is_brought_up_to_date_with_its_rows(tmp_path: Path, step: int) -> None:
    names = [f"m{number:03}" for number in range(1, SCHEMA_VERSION + 1)]
    old, migrations = Tables(sqlite3.connect(tmp_path / "old.db")), load_migrations()
    pending = [one.name for one in migrations.pending(old) if one.name[:4] == names[step]]
    migrations.apply(old, stop_before=pending)
    old.execute("insert into conversation values ('con-1', 'ann', 'Hello', '2026-01-01T00:00:00Z')")
    old.conn.execute(f"pragma user_version = {step}")
    old.close()
    store = Store(tmp_path / "old.db")
    assert store.conversation("con-1").title == "Hello"
    assert add_answer(store, "Still there?")
    assert store.counts()["cycles"] == 0


def test_what_was_approved_before_is_found_by_its_answer_too(tmp_path: Path) -> None:
    old, migrations = Tables(sqlite3.connect(tmp_path / "old.db")), load_migrations()
    migrations.apply(old, stop_before=["m008_answers_found"])
    words = ("Your hours?", "your hours", "Open from eight on Mondays.")
    row = ("apr-1", "rev-1", "msg-1", *words, "2026-01-01T00:00:00Z")
    old.conn.execute("insert into approved values (?, ?, ?, ?, ?, ?, ?)", row)
    old.conn.commit()
    old.conn.execute("pragma user_version = 7")
    old.close()
    store = Store(tmp_path / "old.db")
    assert [one.id for one in find_exemplars(store, "Is it open on Mondays?")] == ["apr-1"]
    assert len(store.rows("select 1 from approved_vector")) == 1


def test_a_database_of_a_newer_talkback_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"newer Talkback .schema 99.*upgrade"):
        Store(path)


def test_many_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    for round in range(5):
        path = tmp_path / f"{round}.db"
        with ThreadPoolExecutor(8) as pool:
            stores = list(pool.map(lambda _, path=path: Store(path), range(8)))
        assert stores[0].counts()["messages"] == 0


def test_the_file_is_in_wal_mode_and_commits_are_synced(tmp_path: Path) -> None:
    store = Store(tmp_path / "new.db")
    pragmas = ("journal_mode", "synchronous", "foreign_keys")
    assert [store.row(f"pragma {name}")[0] for name in pragmas] == ["wal", 2, 1]


@pytest.mark.parametrize("table", EVENTS)
def test_rows_are_never_updated(tmp_path: Path, table: str) -> None:
    store = Store(tmp_path / "new.db")
    sql = "select 1 from sqlite_master where type = 'trigger' and name = ?"
    assert store.row(sql, (f"{table}_for_ever",))


def test_an_update_of_a_message_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "new.db")
    add_answer(store, "Hello?")
    with pytest.raises(sqlite3.IntegrityError, match="never updated"), store.write() as db:
        db.execute("update message set content = 'changed'")


def test_a_file_that_is_no_database_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "not.db").write_text("no database at all, but long enough to have a header" * 50)
    with pytest.raises(StoreError, match=r"not.db: file is not a database; move it away"):
        Store(tmp_path / "not.db")


def test_a_folder_that_is_not_there_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no/talkback.db: unable to open.*folder"):
        Store(tmp_path / "no" / "talkback.db")
