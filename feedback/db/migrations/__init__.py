"""Defines the tables as numbered migrations. A change of schema is a new one, never an edit.

Rows are events: they are inserted, read, and (by an erasure) deleted, never updated; triggers hold
that. What came later wins, and "later" is the order of insertion (``rowid``), not a clock's.
What would take a walk over all events to find, as the review queue, is kept up by triggers.

sqlite-utils applies them. It is imported by those that migrate only: it imports pandas where that
is installed, 0.7 s that no other start should pay.
"""

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from feedback.db.migrations.approved_search import (
    m008_answers_found,
    m010_cut_answers,
    m011_unspaced_scripts,
    m017_approved_vectors,
)
from feedback.db.migrations.pending import (
    m009_pending,
    m013_trusted_choices,
    m014_votes,
)
from feedback.db.migrations.schema_versions import record_version
from feedback.db.migrations.tables import (
    m001_conversations,
    m002_feedback,
    m003_approved,
    m004_split,
    m005_adapters,
    m006_events,
    m007_keys,
    m012_base_locations,
    m015_base_identities,
    m016_thoughts,
)

if TYPE_CHECKING:
    from sqlite_utils import Database, Migrations

Migration = Callable[["Database"], None]
MIGRATIONS: list[Migration] = [
    m001_conversations,
    m002_feedback,
    m003_approved,
    m004_split,
    m005_adapters,
    m006_events,
    m007_keys,
    m008_answers_found,
    m009_pending,
    m010_cut_answers,
    m011_unspaced_scripts,
    m012_base_locations,
    m013_trusted_choices,
    m014_votes,
    m015_base_identities,
    m016_thoughts,
    m017_approved_vectors,
]
"""All steps in their order; the database records each under its function's name."""
SCHEMA_VERSION = len(MIGRATIONS)
"""What ``pragma user_version`` says of a database that is up to date."""


def load_migrations() -> "Migrations":
    """Return the steps as sqlite-utils applies them."""
    from sqlite_utils import Migrations

    migrations = Migrations("feedback")
    for step in MIGRATIONS:
        migrations(name=step.__name__)(step)
    return migrations


def migrate(
    connection: sqlite3.Connection, before: Callable[[int], object] = lambda first_step: None
) -> None:
    """Bring the database up to date, whole or not at all; processes that start together queue.

    ``before`` is called with the number of the first step to come, when nobody else can write.
    """
    from sqlite_utils import Database

    migrations, database = load_migrations(), Database(connection)
    connection.execute("begin immediate")
    try:
        applied = len(migrations.applied(database))
        if applied < SCHEMA_VERSION:
            before(applied + 1)
            migrations.apply(database)
            record_version(connection, SCHEMA_VERSION)
        connection.execute(f"pragma user_version = {len(migrations.applied(database))}")
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
