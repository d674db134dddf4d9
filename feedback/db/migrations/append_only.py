"""Makes tables append-only: their rows are never updated."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database


def forbid_updates(db: "Database", *tables: str) -> None:
    """Have every update of these tables refused from now on."""
    for table in tables:
        db.execute(
            f"create trigger {table}_for_ever before update on {table} "
            f"begin select raise(abort, 'rows of {table} are never updated'); end"
        )
