"""Measures what our HTTP costs over the bare engine, and the page over our HTTP.

    python -m tests.bench.bench_api                # 16 clients of the starter model, then the page
    python -m tests.bench.bench_api --no-page      # without a browser
    python -m tests.bench.bench_api --rounds 5
    python -m tests.bench.bench_api --tokens 0     # answers as long as the starter's own, some 15
    python -m tests.bench.bench_api --each 1       # all first words are asked for at once

All clients ask at the same moment, and go on to ask as their own answers end, as people do.
The server runs in a process of its own, and so does the bare engine; its CPU-seconds count, not
its clients'. Beside other work only the figures per CPU-second mean something.
"""

import argparse
import json
import multiprocessing
import os
import queue
import re
import selectors
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from chatbot.model.base import STARTER
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.server_process import ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from chatbot.engine.protocol import Engine, Request
    from chatbot.engine.stream import Stream

MOST = 64
"""Tokens of an answer that ends by itself, as the starter's do after a sentence."""
WORD = re.compile(rb'"content": "[^"]')
LAST = b"data: [DONE]\n\n\r\n0\r\n\r\n"
QUESTIONS = (
    "When do you open?",
    "How long does delivery take?",
    "Can I return the shoes?",
    "Who are you?",
    "What can you do for me?",
    "Tell me about your shop.",
    "Do you sell kayaks?",
    "Where is my order?",
)


@dataclass
class Rate:
    """Rounds of one way to stream: tokens, wall seconds, CPU seconds, first tokens in ms."""

    tokens: list[int] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def add(self, tokens: int, wall: float, cpu: float, first: list[float]) -> None:
        """One more round."""
        self.tokens.append(tokens)
        self.wall.append(wall)
        self.cpu.append(cpu)
        self.first += first

    @property
    def per_second(self) -> float:
        return sum(self.tokens) / sum(self.wall)

    @property
    def per_cpu(self) -> float:
        return sum(self.tokens) / sum(self.cpu)


def cpu_of(pid: int) -> float:
    """CPU-seconds of a process and its children so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for task in Path(f"/proc/{pid}/task").iterdir():
        if task.name != str(pid):
            children += (task / "children").read_text().split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(cpu_of, map(int, children)))


def engine(
    pipe: Connection, base_name: str, streams: int, threads: int, tokens: int, each: int
) -> None:
    """In a process of its own: rounds of bare streams, sent as (tokens, wall, cpu, firsts).
    Before them the bias of all requests is sent: where `tokens` are asked, none ends before."""
    from chatbot.engine.local.local_engine import LocalEngine
    from chatbot.engine.protocol import Request, Sampling
    from chatbot.engine.settings import EngineSettings
    from chatbot.model.base import end_token_ids, load_base
    from chatbot.model.chat_template import encode
    from chatbot.model.untrained import write_untrained

    base = load_base(base_name)
    bias = tuple((token, -100) for token in sorted(end_token_ids(base))) if tokens else ()
    pipe.send(bias)
    running = LocalEngine(base, EngineSettings(threads=threads))
    with tempfile.TemporaryDirectory() as temp:
        adapter = write_untrained(base, Path(temp))
        running.load(adapter.name, adapter)
        while pipe.recv():
            prompts = [
                encode(base.tokenizer, [{"role": "user", "content": question(number)}])
                for number in range(streams)
            ]
            begin, cpu = time.perf_counter(), time.process_time()
            sampling = Sampling(max_tokens=tokens or MOST, logit_bias=bias)
            requests = [Request(ids, adapter.name, sampling) for ids in prompts]
            asked = asked_in_turn(running, requests, each)
            wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
            firsts = [stream.first_token_ms for stream in asked]
            pipe.send((sum(len(stream.ids) for stream in asked), wall, cpu, firsts))
    running.close()


def asked_in_turn(engine: "Engine", requests: Sequence["Request"], each: int) -> list["Stream"]:
    """Every request so many times, again as soon as its stream has ended; all streams, ended."""
    heard: queue.SimpleQueue[tuple[int, Stream]] = queue.SimpleQueue()
    ended: set[Stream] = set()
    asked: list[Stream] = []
    left = Counter(dict.fromkeys(range(len(requests)), each))

    def submit(number: int) -> None:
        stream = engine.submit(requests[number])
        stream.on_update(lambda: heard.put((number, stream)) if stream.finish else None)
        asked.append(stream)
        left[number] -= 1

    for number in range(len(requests)):
        submit(number)
    while len(ended) < each * len(requests):
        number, stream = heard.get()
        if stream not in ended:  # its end may be heard twice
            ended.add(stream)
            if left[number]:
                submit(number)
    return asked


def question(number: int) -> str:
    """What the stream of that number asks."""
    return QUESTIONS[number % len(QUESTIONS)]


class Answers:
    """Counts what a server has generated and used since the last look; `given` is its answers."""

    def __init__(self, server: ServerProcess, home: Home) -> None:
        self._pid, self._store = server.process.pid, Store(home.db)
        self.look()

    def look(self) -> tuple[int, float, float]:
        """Tokens, wall seconds and CPU-seconds since."""
        sql = "select count(*) as given, coalesce(sum(completion_tokens), 0) as tokens from speaker"
        row = self._store.row(sql)
        assert row is not None
        now = (row["tokens"], time.perf_counter(), cpu_of(self._pid), row["given"])
        before = getattr(self, "_before", now)
        self._before = now
        self.given = now[3] - before[3]
        return now[0] - before[0], now[1] - before[1], now[2] - before[2]


class Telling:
    """What one connection asks, so many times, and what it has heard of the answer."""

    def __init__(self, request: bytes, times: int) -> None:
        self._request, self._left = request, times

    def ask(self, connection: socket.socket) -> None:
        """Once more."""
        connection.sendall(self._request)
        self._began, self._heard = time.perf_counter(), bytearray()
        self._left -= 1

    def hear(self, connection: socket.socket, first: list[float]) -> bool:
        """Read what there is, and ask again after the end; True after the last."""
        spoke = WORD.search(self._heard)
        heard = connection.recv(1 << 16)
        assert heard, f"the server hung up after {bytes(self._heard[-200:])!r}"
        self._heard += heard
        if not spoke and WORD.search(self._heard):
            first.append((time.perf_counter() - self._began) * 1000)
        if not self._heard.endswith(LAST):
            return False
        assert self._heard.startswith(b"HTTP/1.1 200"), self._heard[:300]
        if self._left:
            self.ask(connection)
            return False
        return True


class Client:
    """Sockets that are open before anything is asked, all on one thread: on a small machine a
    library's client takes the cores from the server, and asks so slowly that few streams meet."""

    def __init__(self, url: str, streams: int, bias: dict[int, int], tokens: int) -> None:
        address = urlsplit(url)
        self._host, self._port = str(address.hostname), address.port
        self._streams, self._bias, self._tokens = streams, bias, tokens or MOST

    def ask(self, each: int = 1) -> list[float]:
        """All at once, each again when its answer has ended, so many times; milliseconds to the
        first words, once all have ended."""
        first: list[float] = []
        with ExitStack() as open_ones, selectors.DefaultSelector() as heard:
            for number in range(self._streams):
                connection = socket.create_connection((self._host, self._port))
                telling = Telling(self._request(number), each)
                heard.register(open_ones.enter_context(connection), selectors.EVENT_READ, telling)
            for key in list(heard.get_map().values()):
                key.data.ask(key.fileobj)
            while heard.get_map():
                for key, _ in heard.select():
                    if key.data.hear(key.fileobj, first):
                        heard.unregister(key.fileobj)
        return first

    def _request(self, number: int) -> bytes:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": question(number)}],
            "max_tokens": self._tokens,
            "logit_bias": self._bias,
            "stream": True,
        }
        text = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
        return f"{head}Host: {self._host}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text


def sse_round(client: Client, answers: Answers, rate: Rate, each: int = 1) -> None:
    """All streams at once over HTTP."""
    answers.look()
    firsts = client.ask(each)
    rate.add(*answers.look(), firsts)


@contextmanager
def open_tabs(server: ServerProcess, count: int) -> Iterator[list["Page"]]:
    """So many browser tabs at the chat page, each of a visitor of its own."""
    from playwright.sync_api import sync_playwright

    from tests.fakes.scripted_engine import open_chat

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright, ExitStack() as tabs:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield [tabs.enter_context(open_chat(browser, server.url)) for _ in range(count)]


def page_round(tabs: list["Page"], number: int, answers: Answers, rate: Rate) -> None:
    """All tabs ask at once. Each one's answer has begun and ended before anything is counted."""
    from playwright.sync_api import expect

    from tests.fakes.scripted_engine import ANSWER, send_message, wait_until_idle

    answers.look()
    for at, tab in enumerate(tabs):
        send_message(tab, question(number + at))
    for tab in tabs:
        expect(tab.locator(ANSWER)).to_have_count(number + 1)
        wait_until_idle(tab)
    tokens, *used = answers.look()
    assert answers.given == len(tabs), f"{answers.given} answers to {len(tabs)} questions"
    rate.add(tokens, *used, [])


def page_rounds(
    server: ServerProcess, answers: Answers, args: argparse.Namespace, rates: dict[str, Rate]
) -> None:
    """Rounds of HTTP and of the page by turns; the first of each only warms up."""
    sse, page = rates["SSE, as many as tabs"], rates["page"]
    client = Client(server.url, args.tabs, {}, 0)
    with open_tabs(server, args.tabs) as tabs:
        for number in range(args.rounds + 1):
            kept = number > 0
            sse_round(client, answers, sse if kept else Rate())
            page_round(tabs, number, answers, page if kept else Rate())


def measure(args: argparse.Namespace, root: Path) -> dict[str, Rate]:
    """All rows of the table; the bare engine and HTTP take turns, then HTTP and the page."""
    rates = {"engine": Rate(), "SSE": Rate()}
    home = Home.find(root / "home")
    threads = f"threads = {args.threads}\n"
    home.toml.write_text(f"[engine]\n{threads}\n[chat]\nmax_tokens = {MOST}\n")
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    options = (theirs, args.base, args.streams, args.threads, args.tokens, args.each)
    bare = multiprocessing.get_context("spawn").Process(target=engine, args=options, daemon=True)
    bare.start()
    server = ServerProcess(home, "--base-model", args.base).ready()
    answers = Answers(server, home)
    try:
        client = Client(server.url, args.streams, dict(ours.recv()), args.tokens)
        alternate(
            args.rounds, ours, rates, lambda rate: sse_round(client, answers, rate, args.each)
        )
        if not args.no_page and (shutil.which("chromium") or shutil.which("chromium-browser")):
            rates["SSE, as many as tabs"], rates["page"] = Rate(), Rate()
            page_rounds(server, answers, args, rates)
    finally:
        server.kill()
        ours.send(False)
    return rates


def alternate(
    rounds: int, pipe: Connection, rates: dict[str, Rate], http_round: Callable[[Rate], None]
) -> None:
    """Rounds of the bare engine and of HTTP by turns; the first of each only warms up."""
    for number in range(rounds + 1):
        pipe.send(True)
        measured = pipe.recv()
        kept = number > 0
        if kept:
            rates["engine"].add(*measured)
        http_round(rates["SSE"] if kept else Rate())


def report(rates: dict[str, Rate], streams: int) -> str:
    """The table as Markdown."""
    lines = ["| way | tokens | tok/s | tok per CPU-s | first token, ms |", "|---|---|---|---|---|"]
    for name, rate in rates.items():
        first = f"{statistics.median(rate.first):.0f}" if rate.first else ""
        figures = f"{sum(rate.tokens)} | {rate.per_second:.0f} | {rate.per_cpu:.0f} | {first}"
        lines.append(f"| {name} | {figures} |")
    bare, sse = rates["engine"], rates["SSE"]
    later = statistics.median(sse.first) - statistics.median(bare.first)
    lines.append(
        f"\n{streams} streams: SSE has {sse.per_second / bare.per_second:.2f} of the engine's "
        f"tokens/s, {sse.per_cpu / bare.per_cpu:.2f} per CPU-second; first token {later:+.0f} ms."
    )
    if "page" in rates:
        times = rates["SSE, as many as tabs"].per_cpu / rates["page"].per_cpu
        lines.append(
            f"A token through the page costs {times:.1f} times the server CPU of one by SSE."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default=STARTER)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tabs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0: all cores")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer; 0: as it ends")
    parser.add_argument("--each", type=int, default=4, help="questions of a client in a round")
    parser.add_argument("--no-page", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        print(report(measure(args, Path(temp)), args.streams))


if __name__ == "__main__":
    sys.exit(main())
