"""Keeps which version of Talkback brought a database to which schema, for older ones to name.

Its table is about the schema, as sqlite-utils' ``_sqlite_migrations`` is, and no part of it: it is
there before any step.
"""

import importlib.metadata
import sqlite3

from feedback.ids import now


def talkback_version() -> str:
    """Return the version of this Talkback; "unknown" where it runs without being installed."""
    try:
        return importlib.metadata.version("talkback")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def record_version(connection: sqlite3.Connection, schema: int) -> None:
    """Keep that this version brought the database to this schema, as a part of its transaction."""
    connection.execute(
        """create table if not exists _talkback_version (
            schema integer primary key,
            version text not null,
            created_at text not null
        ) strict"""
    )
    row = (schema, talkback_version(), now())
    connection.execute("insert or replace into _talkback_version values (?, ?, ?)", row)


def find_version(connection: sqlite3.Connection, schema: int) -> str:
    """Return the version that brought the database to this schema; "" where nothing tells."""
    if not connection.execute(
        "select 1 from sqlite_master where name = '_talkback_version'"
    ).fetchone():
        return ""
    sql = "select version from _talkback_version where schema = ? and version <> 'unknown'"
    row = connection.execute(sql, (schema,)).fetchone()
    return str(row[0]) if row else ""
