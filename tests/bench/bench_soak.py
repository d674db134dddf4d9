"""Measures memory, slots and ends under 64 streaming clients, a tenth of which vanish.

    python tests/bench/bench_soak.py                       # 5 minutes on a tiny model
    python tests/bench/bench_soak.py 2 --clients 64 --base chatbot/starter
    python tests/bench/bench_soak.py --same                # all ask the same question

The engine keeps the kernels that it makes for prompts of another shape, a thousand at most; where
all ask the same, whatever memory grows by is lost.

The server is a process of its own; what it holds is read from its /metrics.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from feedback.settings import Home
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.soak_clients import MetricsSample, SoakClients
from tests.fixtures.tiny_models import write_model


def main() -> None:
    """Print what was seen over time, and the end; exit code 1 when a slot or a stream is stuck."""
    parser = argparse.ArgumentParser()
    parser.add_argument("minutes", type=float, nargs="?", default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--base", help="a folder or a Hub id; default: a tiny model")
    parser.add_argument("--same", action="store_true", help="one question, no new shapes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="talkback-bench-") as folder:
        home = Home.find(Path(folder) / "home")
        home.toml.write_text("[engine]\nthreads = 1\nprefix_mb = 16\n")  # soon full
        base = args.base or str(write_model(Path(folder) / "base", max_position_embeddings=2048))
        server = ServerProcess(home, "--base-model", base).ready()
        try:
            seconds = args.minutes * 60
            soak = SoakClients(
                server.url, args.clients, seconds, every=seconds / 20, same=args.same
            )
            asyncio.run(soak.run(seen))
            rest = asyncio.run(soak.rest())
        finally:
            server.stop()
    show(soak, rest)
    sys.exit(bool(rest.running or rest.waiting or soak.ends["stuck"] or soak.ends["broken"]))


def seen(sample: MetricsSample) -> None:
    """A line of progress."""
    print(
        f"{sample.seconds:5.0f} s  {sample.rss:6.1f} MiB  {sample.running} running", file=sys.stderr
    )


def show(soak: SoakClients, rest: MetricsSample) -> None:
    """The tables."""
    over_time = Table("seconds", "RSS, MiB", "open files", "running", "waiting", "tokens")
    for sample in [*soak.samples[:-1], rest]:
        over_time.add_row(
            f"{sample.seconds:.0f}",
            f"{sample.rss:.1f}",
            str(sample.files),
            str(sample.running),
            str(sample.waiting),
            str(sample.tokens),
        )
    ends = Table("streams", "whole", "vanished", "stuck", "broken", "refused", "RSS grew, MiB")
    counts = [soak.ends[end] for end in ("whole", "vanished", "stuck", "broken", "refused")]
    ends.add_row(str(sum(counts)), *map(str, counts), f"{soak.growth():+.1f}")
    console = Console(width=100)
    console.print(over_time, ends)


if __name__ == "__main__":
    main()
