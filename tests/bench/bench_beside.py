"""Measures chat beside a cycle on the same cores: how much each slows the other down.

    python tests/bench/bench_beside.py

One server and one stream of questions, first alone, then beside a cycle; and the same cycle with
the server idle. Both cycles learn the same 20 corrections from copies of one home.
"""

import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from chatbot.model.base import STARTER
from chatbot.service import Service
from feedback.settings import Home
from talkback.cycle import run_cycle
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.shop_corrections import correct_answer, load_facts, with_new_fact

CORRECTIONS = 20
ALONE_SECONDS = 20


class Chat(threading.Thread):
    """Asks one question after the other, and counts the tokens of the response."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self.server, self.tokens, self.over = server, 0, threading.Event()
        self.began = time.monotonic()

    def run(self) -> None:
        """Until told to stop."""
        questions = [fact.question for fact in load_facts()]
        with httpx.Client(base_url=self.server.url, timeout=120) as http:
            while not self.over.is_set():
                body = {
                    "messages": [{"role": "user", "content": random.choice(questions)}],
                    "metadata": {"unaided": "true"},
                }
                response = http.post("/v1/chat/completions", json=body).raise_for_status().json()
                self.tokens += response["usage"]["completion_tokens"]

    def rate(self) -> float:
        """Stop; tokens a second."""
        seconds = time.monotonic() - self.began
        self.over.set()
        tokens = self.tokens
        self.join()
        return tokens / seconds


def prepared(root: Path) -> Home:
    """A home with 20 corrections that wait for a cycle."""
    home = Home.find(root)
    service = Service.open(home)
    rng = random.Random(0)
    for fact in load_facts()[:CORRECTIONS]:
        correct_answer(service, with_new_fact(fact, rng))
    service.close()
    return home


def cycle(home: Home) -> float:
    """Seconds of a cycle that gets to its verdict."""
    began = time.monotonic()
    outcome = run_cycle(home)
    print(outcome, file=sys.stderr)
    assert outcome.adapter, outcome
    return time.monotonic() - began


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="talkback-bench-") as folder:
        root = Path(folder)
        beside = prepared(root / "beside")
        idle = Home.find(shutil.copytree(beside.root, root / "idle"))
        server = ServerProcess(beside, "--base-model", STARTER).ready()
        try:
            cycle_alone = cycle(idle)
            chat = Chat(server)
            chat.start()
            time.sleep(ALONE_SECONDS)
            chat_alone = chat.rate()
            chat = Chat(server)
            chat.start()
            cycle_beside = cycle(beside)
            chat_beside = chat.rate()
        finally:
            server.stop()
    table = Table("", "alone", "beside the other", "ratio")
    table.add_row(
        "chat, tokens/s",
        f"{chat_alone:.0f}",
        f"{chat_beside:.0f}",
        f"{chat_beside / chat_alone:.2f} of its speed",
    )
    table.add_row(
        "cycle, seconds",
        f"{cycle_alone:.0f}",
        f"{cycle_beside:.0f}",
        f"{cycle_beside / cycle_alone:.2f} times as long",
    )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
