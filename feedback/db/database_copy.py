"""Copies a SQLite database in one step, also while others write it.

    copy_database(home.db, folder / "talkback.db")
    copy_before_migration(home.db, first_step=18)      # talkback.db.before-m018

SQLite's backup with all pages in one step holds one read transaction: in WAL mode writers go on,
and the copy has all that was committed before it began. (A backup in several steps begins again at
each write of another connection; VACUUM INTO would give rows other rowids, which are their order.)
"""

import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from feedback.publish import make_file, private_mode, sync

COPY_NAME = re.compile(r"\.before-m(\d{3})")
"""What the name of a copy adds to the database's: the first step that came after it."""


def copy_database(source: Path, target: Path) -> None:
    """Copy a database into the new file ``target``, durably, with the permissions of its folder.

    Raises sqlite3.Error for a source that is no database, FileExistsError for a target that is
    there. A copy that fails leaves nothing.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists")
    make_file(target)
    try:
        with closing(_open(source)) as read, closing(sqlite3.connect(target)) as written:
            written.execute("pragma synchronous = off")  # all of it is flushed at once, below
            read.backup(written, pages=-1)
        sync(target)
    except BaseException:
        target.unlink()
        raise


def copy_before_migration(database: Path, first_step: int) -> Path:
    """Copy a database beside it before step ``first_step`` changes it; return the copy's path.

    It takes the place of copies from before earlier migrations. Whoever calls holds the write lock,
    so that nothing is committed between copy and migration. The copy is its owner's alone, and its
    group's where the folder is shared with it. One that has the name already is of a migration that
    failed: all of its rows are in the new one, too.
    """
    copy = database.with_name(f"{database.name}.before-m{first_step:03}")
    with tempfile.TemporaryDirectory(prefix=f".{copy.name}-", dir=database.parent) as folder:
        draft = Path(folder) / database.name
        copy_database(database, draft)
        draft.chmod(private_mode(database.parent) & 0o660)
        draft.replace(copy)
    for older in _copies(database):
        if older.name < copy.name:
            older.unlink()
    sync(database.parent)
    return copy


def newest_copy(database: Path) -> Path | None:
    """Return the copy that was made before the newest migration; None without one."""
    return max(_copies(database), default=None, key=lambda file: file.name)


def _copies(database: Path) -> list[Path]:
    return [
        file
        for file in database.parent.glob(f"{database.name}.before-m*")
        if COPY_NAME.fullmatch(file.name.removeprefix(database.name))
    ]


def has_rows(connection: sqlite3.Connection) -> bool:
    """Tell whether any table of ours has a row."""
    tables = connection.execute(
        """select name from pragma_table_list where schema = 'main' and type = 'table'
        and name not glob 'sqlite_*' and name not glob '_*'"""
    ).fetchall()
    return any(
        connection.execute(f'select exists (select 1 from "{name}")').fetchone()[0]
        for (name,) in tables
    )


def read_schema(database: Path) -> int:
    """Return the number of the last migration of a database file; sqlite3.Error."""
    with closing(_open(database)) as connection:
        return int(connection.execute("pragma user_version").fetchone()[0])


def find_damage(database: Path) -> str:
    """Return what SQLite finds wrong with the pages of a database, in a line; "" if nothing."""
    with closing(_open(database)) as connection:
        line = str(connection.execute("pragma quick_check(1)").fetchone()[0])
    return "" if line == "ok" else line.replace("\n", " ")


def _open(database: Path, timeout: float = 10) -> sqlite3.Connection:
    """Open a database that is there; its absence is an error, not an empty database."""
    return sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True, timeout=timeout)


def close_journal(database: Path) -> bool:
    """Write what is in the journal into the database itself; tell whether nobody has it open now.

    A database that another process has open must not be moved: that process would go on with the
    journal of whichever database has the name by then. The last connection that closes removes the
    journal, so one that stays is somebody's.
    """
    with closing(_open(database, timeout=0.5)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    return not database.with_name(f"{database.name}-wal").exists()
