"""Measures the CPU of curation and of its snapshot in a small and in a large store.

    python -m tests.bench.bench_curation                 # 10,000 and 100,000 messages

One answer in ten has feedback, and a reviewer has corrected each of these.
"""

import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from feedback.curation.curate import curate
from feedback.snapshot import write_snapshot
from feedback.store import Store
from tests.bench.bench_store import write_old_store

SIZES = (10_000, 100_000)
CORRECT_ALL = """
insert into review (id, message_id, reviewer, action, answer, note, feedback_id, created_at)
select 'corrected-' || id, message_id, 'rita', 'correct', 'From ten on ' || message_id, '', id,
    created_at from feedback"""


def measure(folder: Path, messages: int) -> tuple[float, float, int]:
    """Return the seconds of CPU of curation and of the snapshot, and how many rows there are."""
    write_old_store(folder / "store.db", messages)
    store = Store(folder / "store.db")
    with store.write() as db:
        db.execute(CORRECT_ALL)
    began = time.process_time()
    curation = curate(store)
    curated = time.process_time()
    write_snapshot(curation, folder / "snapshots")
    store.close()
    return curated - began, time.process_time() - curated, len(curation.rows)


def main() -> None:
    """Print a row for each size, with the ratio to the smallest."""
    table = Table("messages", "rows", "curate: CPU s", "snapshot: CPU s", "ratio")
    first = 0.0
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            curated, written, rows = measure(Path(folder), size)
        first = first or curated + written
        ratio = f"{(curated + written) / first:.1f}x"
        table.add_row(f"{size:,}", f"{rows:,}", f"{curated:.2f}", f"{written:.2f}", ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
