"""Plays the whole loop over HTTP against a real server on the starter model.

    talkback demo          # then stays up for the browser; --exit ends instead

A shop has changed some of its terms. The bot still gives the old ones; a customer complains, a
reviewer corrects, and the table at the end shows what the bot has learnt, and what it has kept.
"""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table

from chatbot.model.base_name import STARTER_FOLDER
from feedback.curation.row_files import read_rows
from feedback.errors import TalkbackError
from feedback.publish import make_file
from feedback.review.decisions import decide
from feedback.settings import Home
from feedback.store import Store
from talkback.cycle import run_cycle
from talkback.output import SafeConsole, console, styled
from talkback.stage import child_environment

CHANGED_FACTS = {
    "opening_hours": ("9 am", "8 am"),
    "return_window": ("30 days", "60 days"),
    "refund_time": ("5 working days", "3 working days"),
    "delivery_price": ("£4.95", "£3.20"),
    "free_delivery": ("£60", "£45"),
    "carrier": ("Swallow Post", "Heron Express"),
    "gift_card": ("£15", "£25"),
    "loyalty": ("Nest Card", "Feather Card"),
    "warranty": ("3 years", "7 years"),
    "stores": ("Bristol", "Oxford"),
    "parking": ("90 minutes", "3 hours"),
    "phone": ("0117 496 0142", "0117 496 0199"),
}
"""Topic -> (the fact that the starter model was trained on, the fact now)."""

SHOWN = 3
"""Answers printed of each group; all are counted."""


class DemoError(TalkbackError):
    """Says that the demo's server did not start or answer, with its last output."""


@dataclass(frozen=True)
class DemoQuestion:
    """Holds a question, and the fact that a right answer must contain."""

    text: str
    fact: str


def play_demo(
    folder: Path | None, *, port: int, stay: bool, console: SafeConsole = console
) -> None:
    """Run the demo; then keep its server up until a signal, or end."""
    with demo_home(folder) as home, start_server(home.root, port, console) as client:
        Demo(home, client, console).run()
        if stay:
            console.print(
                styled("\nThe server stays up: ", (client.url, "bold"), "   (Ctrl-C ends it)")
            )
            signal.sigwait({signal.SIGINT, signal.SIGTERM})


@contextmanager
def demo_home(folder: Path | None) -> Iterator[Home]:
    """Yield the home in the folder given, else one that is removed after the demo."""
    if folder is not None:
        yield Home.find(folder)
        return
    with tempfile.TemporaryDirectory(prefix="talkback-demo-") as temporary:
        yield Home.find(Path(temporary))


class DemoClient:
    """Sends a customer's requests to the API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=120)

    def ask(self, question: str, *, unaided: bool = False) -> tuple[str, str]:
        """Ask in a new conversation; return the answer and its message id.

        `unaided` asks the adapter alone, without approved answers in the prompt.
        """
        body = {
            "model": "talkback",
            "user": "demo",
            "messages": [{"role": "user", "content": question}],
            "metadata": {"unaided": "true"} if unaided else {},
        }
        answer = self.post("/v1/chat/completions", body)
        return answer["choices"][0]["message"]["content"], answer["id"]

    def give_feedback(self, message_id: str, kind: str, value: dict[str, Any]) -> None:
        """Send feedback on an answer."""
        body = {"message_id": message_id, "kind": kind, "user": "demo", "value": value}
        self.post("/v1/feedback", body)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send JSON and return the JSON of the response; DemoError for an HTTP error."""
        response = self.http.post(path, json=body)
        if response.is_error:
            raise DemoError(f"{path} answered {response.status_code}: {response.text}")
        return response.json()

    def current_adapter(self) -> str:
        """Return the id of the adapter in service; DemoError if a promoted one was refused."""
        health = self.http.get("/healthz").raise_for_status().json()
        if health["warning"]:
            raise DemoError(f"the server refused an adapter: {health['warning']}")
        return str(health["adapter"])


@contextmanager
def start_server(home: Path, port: int, console: SafeConsole) -> Iterator[DemoClient]:
    """Start a server process on the starter model; yield its client once it answers."""
    port = port or free_port()
    command = [sys.executable, "-m", "talkback", "serve", "--home", str(home), "--port", str(port)]
    log = home / "server.log"
    console.print(f"Starting `talkback serve` on the starter model ({log})")
    began = time.monotonic()
    make_file(log)
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=child_environment()
        )
        try:
            client = DemoClient(f"http://127.0.0.1:{port}")
            wait_until(lambda: is_healthy(client, server, log))
            console.print(f"It answers after {time.monotonic() - began:.1f} s.")
            yield client
        finally:
            server.terminate()
            server.wait(30)


def is_healthy(client: DemoClient, server: subprocess.Popen[bytes], log: Path) -> bool:
    """Tell whether the server answers; DemoError, with the end of its log, once it has died."""
    if server.poll() is not None:
        raise DemoError(f"the server ended: {log.read_text()[-500:]}")
    try:
        return bool(client.http.get("/healthz").json().get("adapter"))
    except httpx.TransportError:
        return False


def wait_until(done: Callable[[], bool]) -> None:
    """Wait until `done`, however slow a busy machine is; `done` raises once waiting is in vain."""
    while not done():
        time.sleep(0.2)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Demo:
    """Plays the loop act by act, printing each to the terminal while it happens."""

    def __init__(self, home: Home, client: DemoClient, console: SafeConsole) -> None:
        self.home, self.client, self.console = home, client, console
        self.changed: list[DemoQuestion] = []
        self.rephrased: list[DemoQuestion] = []
        self.untouched: list[DemoQuestion] = []
        self.corrections: dict[str, str] = {}
        self.load_questions()

    def load_questions(self) -> None:
        """Load the questions: the changed ones, other ways to ask them, and all the rest."""
        for entry in read_rows(STARTER_FOLDER / "questions.jsonl"):
            if entry["topic"] not in CHANGED_FACTS:
                self.untouched.append(DemoQuestion(entry["question"], entry["fact"]))
                continue
            old, new = CHANGED_FACTS[entry["topic"]]
            self.changed.append(DemoQuestion(entry["question"], new))
            self.rephrased += [DemoQuestion(text, new) for text in entry["paraphrases"]]
            self.corrections[entry["question"]] = entry["answer"].replace(old, new)

    def run(self) -> None:
        """Ask, correct, ask again, learn, ask again, and print the table."""
        self.title("The bot tells what it was once taught")
        before = self.measure()
        self.title("A customer complains, a reviewer corrects")
        self.correct()
        self.title("At once: approved answers work through the prompt")
        aided = self.measure(unaided=False)
        self.title("talkback cycle: the corrections are trained into a new adapter")
        self.cycle()
        self.title("What it says now, with nothing in the prompt")
        after = self.measure()
        self.table(before, aided, after)

    def title(self, text: str) -> None:
        """Print a line between the acts."""
        self.console.print()
        self.console.rule(styled((text, "bold")))

    def measure(self, unaided: bool = True) -> list[str]:
        """Ask everything and print some answers; return "right/asked" of each group."""
        return [
            self.score(group, unaided) for group in (self.changed, self.rephrased, self.untouched)
        ]

    def score(self, group: list[DemoQuestion], unaided: bool) -> str:
        """Return how many answers hold their fact, as "11/12"."""
        right = 0
        for number, question in enumerate(group):
            answer, _ = self.client.ask(question.text, unaided=unaided)
            right += question.fact in answer
            if number < SHOWN:
                mark = ("✓", "green") if question.fact in answer else ("✗", "red")
                self.console.print(styled("  ", mark, f" {question.text}  ", (answer, "dim")))
        return f"{right}/{len(group)}"

    def correct(self) -> None:
        """Send a thumb down and an edit as the customer, then decide as a reviewer."""
        store = Store(self.home.db)
        for question in self.changed:
            answer, message_id = self.client.ask(question.text, unaided=True)
            right = self.corrections[question.text]
            self.client.give_feedback(
                message_id, "thumb", {"up": False, "reasons": ["not_factually_correct"]}
            )
            self.client.give_feedback(message_id, "edit", {"text": right})
            decide(store, message_id, "reviewer", "approve", right)
            self.console.print(styled((f"  - {answer}\n", "red"), (f"  + {right}", "green")))
        store.close()

    def cycle(self) -> None:
        """Run a real cycle, and wait for the swap in the running server."""
        with self.console.status("the cycle begins") as status:
            outcome = run_cycle(
                self.home,
                on_progress=lambda stage, line: status.update(styled((stage, "bold"), f" {line}")),
            )
        seconds = sum(outcome.seconds.values())
        self.console.print(styled("  ", (outcome.kind, "bold"), f" in {seconds:.0f} s"))
        for reason in outcome.reasons:
            self.console.print(f"  · {reason}")
        if outcome.kind != "promoted":
            raise DemoError(f"the cycle ended with {outcome.kind!r}: {outcome.detail}")
        began = time.monotonic()
        wait_until(lambda: self.client.current_adapter() == outcome.adapter)
        self.console.print(
            f"  {outcome.adapter} speaks {time.monotonic() - began:.1f} s after its promotion"
        )

    def table(self, before: list[str], aided: list[str], after: list[str]) -> None:
        """Print how many answers were right before, with the exemplars, and after the cycle."""
        table = Table("right answers", "before", "corrected, aided", "after the cycle, unaided")
        groups = ("the corrected questions", "other ways to ask them", "untouched questions")
        for row in zip(groups, before, aided, after, strict=True):
            table.add_row(*row)
        self.console.print()
        self.console.print(table)
