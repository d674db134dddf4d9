"""Stops the engine's worker under 16 streams, with the default `stall_seconds`, as swapping would.

    python -m tests.bench.bench_stall

Prints when the last stream had ended with a word, when /readyz said 503, when a token was made
again, and how much later /readyz said 200, by itself. Exit code 1 when a stream had no ending in
30 s, or readiness came more than 5 s after the first token.
"""

import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from feedback.settings import Home
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.tiny_models import write_model
from tests.fixtures.worker_requests import CHAT, LONG, say, stopped, worker_of

STREAMS = 16
PATIENCE = 120
WORDS = ("stood still", "stands still")


class StreamReader(threading.Thread):
    """Reads one endless answer; keeps its text and when it ended."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = f"{url}/v1/chat/completions"
        self.begun, self.text, self.ended_at = threading.Event(), "", 0.0

    def run(self) -> None:
        """Read until the answer ends."""
        bias = {str(token): -100 for token in range(5)}
        body = {**CHAT, "stream": True, "max_tokens": LONG, "logit_bias": bias}
        with httpx.stream("POST", self._url, json=body, timeout=PATIENCE) as sent:
            for piece in sent.iter_text():
                self.text += piece
                self.begun.set()
        self.ended_at = time.monotonic()


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="talkback-bench-") as folder:
        home = Home.find(Path(folder) / "home")
        home.toml.write_text(f"[engine]\nworkers = 1\nthreads = 1\nslots = {STREAMS}\n")
        base = write_model(Path(folder) / "base", max_position_embeddings=8192)
        server = ServerProcess(home, "--base-model", str(base)).ready()
        try:
            sys.exit(not measure(server))
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(PATIENCE)


def measure(server: ServerProcess) -> bool:
    """Stop the worker under the streams; return whether all is within its bounds."""
    readers = [StreamReader(server.url) for _ in range(STREAMS)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.begun.wait(PATIENCE)
    with stopped(worker_of(server)):
        began = time.monotonic()
        unready = wait_for_status(server, 503) - began
        for reader in readers:
            reader.join(PATIENCE)
    token: list[float] = []
    asking = threading.Thread(target=ask_until_answered, args=(server, token), daemon=True)
    asking.start()
    ready = wait_for_status(server, 200)
    asking.join(PATIENCE)
    last = max(reader.ended_at for reader in readers) - began
    worded = sum(any(word in reader.text for word in WORDS) for reader in readers)
    table = Table("streams", "with a word", "last end", "503 after", "a token again", "200 later")
    seconds = [f"{value:.1f} s" for value in (last, unready, token[0] - began, ready - token[0])]
    table.add_row(str(STREAMS), str(worded), *seconds)
    Console(width=100).print(table)
    return worded == STREAMS and last <= 30 and ready - token[0] <= 5


def wait_for_status(server: ServerProcess, status: int) -> float:
    """Wait until /readyz gives the status; return when."""
    while httpx.get(f"{server.url}/readyz", timeout=PATIENCE).status_code != status:
        time.sleep(0.05)
    return time.monotonic()


def ask_until_answered(server: ServerProcess, answered_at: list[float]) -> None:
    """Ask as a person would who tries again; append when the first answer came."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        while say(http) != 200:
            time.sleep(0.05)
    answered_at.append(time.monotonic())


if __name__ == "__main__":
    main()
