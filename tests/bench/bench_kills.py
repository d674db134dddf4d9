"""Kills a server under eight writers of feedback; counts what was lost and what kept twice.

    python tests/bench/bench_kills.py                 # 100 kills of the API without a model
    python tests/bench/bench_kills.py 10 --whole      # 10 kills of the whole server

Each kill comes at a moment of chance while all write over HTTP. Then a new server starts on the
same file, and every writer asks again what it got no answer to, with the same idempotency key.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.conversations import add_answer
from tests.fixtures.kill_server import FeedbackServer, FeedbackWriter, Killable, run_kill_rounds


def main() -> None:
    """Print the table; exit code 1 when anything was lost or kept twice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", type=int, nargs="?", default=100)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--whole", action="store_true", help="the real server, with a tiny model")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="talkback-bench-") as folder:
        home = Home.find(Path(folder) / "home")
        store = Store(home.db)
        id = add_answer(store, "When do you open?")
        store.close()
        start = whole(home, Path(folder)) if args.whole else lambda: FeedbackServer(home)
        writers = [FeedbackWriter(f"writer-{number}", id) for number in range(args.writers)]
        report = run_kill_rounds(start, home, writers, args.rounds)
    table = Table("kills", "writers", "acknowledged", "unsure at a kill", "lost", "twice", "file")
    table.add_row(
        str(args.rounds),
        str(args.writers),
        str(report.acknowledged),
        str(report.unanswered),
        str(len(report.lost)),
        str(report.twice),
        report.damage,
    )
    console = Console(width=100)
    console.print(table)
    console.print(f"{time.monotonic() - began:.0f} s, {'whole' if args.whole else 'light'} server")
    sys.exit(bool(report.lost or report.twice or report.damage != "ok"))


def whole(home: Home, folder: Path) -> Callable[[], Killable]:
    """Starts the real server on a tiny model."""
    from tests.fixtures.server_process import ServerProcess
    from tests.fixtures.tiny_models import write_model

    base = write_model(folder / "base")

    def start() -> Killable:
        return ServerProcess(home, "--base-model", str(base)).ready()

    return start


if __name__ == "__main__":
    main()
