"""Puts the database back as it was before its last migration, and keeps the newer one aside.

    downgraded = downgrade(home)
    downgraded.left_out         # {"message": 12}: rows written since, by table

The copy that the migration made takes the database's name at once, while the newer database keeps
another: at no moment there is none, and nothing is lost.
"""

import os
import sqlite3
import stat
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from feedback.backup.restore import RestoreError, free_name
from feedback.db.database_copy import close_journal, find_damage, newest_copy, read_schema
from feedback.db.migrations.schema_versions import find_version
from feedback.home.in_use import claim_home
from feedback.publish import sync
from feedback.settings import Home

DERIVED = ("approved_vector",)
"""Tables of rows that are never updated, but made anew from those of others where they lack."""


@dataclass(frozen=True)
class Downgraded:
    """Tells which schema the database has again, which version made that one ("" if unknown),
    where the newer database is, and how many of its rows are not in the older one, by table."""

    schema: int
    version: str
    aside: Path
    left_out: dict[str, int]


def downgrade(home: Home) -> Downgraded:
    """Put the copy from before the last migration back.

    Raises RestoreError without a copy, for one that is damaged, and while another process has the
    database open; HomeInUseError while a server or a cycle runs.
    """
    copy = newest_copy(home.db)
    if copy is None or not home.db.exists():
        raise RestoreError(
            f"there is no copy from before a migration beside {home.db}; restore a backup"
        )
    with claim_home(home):
        try:
            damage, schema = find_damage(copy), read_schema(copy)
            with closing(sqlite3.connect(copy)) as connection:
                version = find_version(connection, schema)
            left_out = count_left_out(home.db, copy)
            closed = close_journal(home.db)
        except sqlite3.Error as error:
            raise RestoreError(f"cannot compare {home.db} with {copy}: {error}") from error
        if not closed:
            raise RestoreError(f"another process has {home.db} open; end it, then try again")
        if damage:
            raise RestoreError(f"{copy} is damaged: {damage}; restore a backup")
        aside = free_name(home.db, "newer")
        os.link(home.db, aside)
        copy.chmod(stat.S_IMODE(home.db.stat().st_mode))
        copy.replace(home.db)
        sync(home.root)
    return Downgraded(schema, version, aside, left_out)


def count_left_out(newer: Path, older: Path) -> dict[str, int]:
    """Count the rows of one database that another lacks, by table, compared by their keys.

    Only tables of events count, whose rows never change; the others are made from those.
    """
    counts: dict[str, int] = {}
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("attach ? as older", (str(older),))
        names = "select substr(name, 1, length(name) - 9) from {} where name glob '*_for_ever'"
        tables = [row[0] for row in connection.execute(names.format("main.sqlite_master"))]
        known = {row[0] for row in connection.execute(names.format("older.sqlite_master"))}
        for table in tables:
            if table in DERIVED:
                continue
            same = " and ".join(
                f'theirs."{key}" is ours."{key}"' for key in _key_columns(connection, table)
            )
            sql = f'select count(*) from main."{table}" as ours'
            if table in known:
                sql += f' where not exists (select 1 from older."{table}" as theirs where {same})'
            if count := connection.execute(sql).fetchone()[0]:
                counts[table] = count
    return counts


def _key_columns(connection: sqlite3.Connection, table: str) -> list[str]:
    sql = "select name from pragma_table_info(?, 'main') where pk > 0"
    return [row[0] for row in connection.execute(sql, (table,))]
