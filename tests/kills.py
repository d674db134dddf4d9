"""Writers of feedback, and a server that is killed under them: what was acknowledged, what is kept.

The light server has the real routes, store and HTTP of the real one but no model, so that it is
there a moment after each kill -9.
"""

import multiprocessing
import random
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, Protocol

import httpx

from feedback.settings import Home
from feedback.store import Store

AT_LEAST = 40
"""Acknowledgements of a round before its kill."""


class Killable(Protocol):
    url: str

    def kill(self) -> None:
        """kill -9."""


class LightServer:
    """The API's feedback routes in a process of its own, forked from one that has all imported."""

    def __init__(self, home: Home) -> None:
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["chatbot.api.openai.chat", "tests.kills"])
        port, tell = processes.Pipe(duplex=False)
        self.process = processes.Process(target=_serve, args=(home, tell), daemon=True)
        self.process.start()
        tell.close()  # so that a server that dies is an error here, and no endless wait
        self.url = f"http://127.0.0.1:{port.recv()}"
        port.close()

    def kill(self) -> None:
        """kill -9, as a crash would."""
        self.process.kill()
        self.process.join()
        self.process.close()


def _serve(home: Home, tell: Connection) -> None:
    import uvicorn
    from fastapi import FastAPI

    from chatbot.api import errors
    from chatbot.api.openai import chat as api
    from chatbot.auth.access import Access

    store, no_model = Store(home.db), SimpleNamespace(tokenizer=None)
    engine = SimpleNamespace(waits=False)
    service: Any = SimpleNamespace(
        store=store, base=no_model, engine=engine, access=Access(store, home.root)
    )
    app = FastAPI()
    errors.install(app)
    app.include_router(api.router(service))
    listener = socket.create_server(("127.0.0.1", 0))
    tell.send(listener.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


@dataclass
class Writer:
    """Somebody who says one thing after the other and asks again where no answer came."""

    person: str
    message_id: str
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Idempotency key -> the id that the server said is saved."""
    unsure: str | None = None
    """The key whose answer never came."""
    unsure_often: int = 0

    def write(self, url: str) -> None:
        """Until the server is gone; begins with what is unsure and what was said last, again."""
        last = list(self.acknowledged)[-1:]
        with httpx.Client(base_url=url, timeout=60) as http:
            try:
                for key in [*last, *([self.unsure] if self.unsure else [])]:
                    self.say(http, key)
                while True:
                    self.say(http, f"k-{len(self.acknowledged)}")
            except httpx.TransportError:
                self.unsure_often += self.unsure is not None

    def say(self, http: httpx.Client, key: str) -> None:
        """Once; it is acknowledged, or the client raises."""
        known = key in self.acknowledged
        self.unsure = self.unsure if known else key
        body = {
            "message_id": self.message_id, "kind": "comment", "text": f"this is {key}",
            "user": self.person, "idempotency_key": key,
        }  # fmt: skip
        answer = http.post("/v1/feedback", json=body).raise_for_status()
        id = self.acknowledged.setdefault(key, answer.json()["feedback_id"])
        assert id == answer.json()["feedback_id"], f"{key} is saved as {id} and as another"
        self.unsure = self.unsure if known else None


@dataclass
class Tally:
    """What is left of it all in the end."""

    acknowledged: int
    unsure: int
    """Times that a kill left a writer without an answer."""
    lost: list[str]
    twice: int
    damage: str
    """What SQLite finds wrong with the file; "ok"."""


def kill_under(server: Killable, writers: list[Writer], chance: random.Random) -> None:
    """Let all write to the server, and kill it at some moment."""
    due = acknowledged(writers) + AT_LEAST
    with ThreadPoolExecutor(len(writers)) as threads:
        writing = [threads.submit(writer.write, server.url) for writer in writers]
        while acknowledged(writers) < due and not any(one.done() for one in writing):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        server.kill()
    for one in writing:
        one.result()


def acknowledged(writers: Iterable[Writer]) -> int:
    """How much they were told is saved."""
    return sum(len(writer.acknowledged) for writer in writers)


def rounds(
    start: Callable[[], Killable], home: Home, writers: list[Writer], count: int, seed: int = 0
) -> Tally:
    """So many kills, each of a new server; then what is unsure is settled, and all is counted."""
    chance = random.Random(seed)
    for _ in range(count):
        kill_under(start(), writers, chance)
    last = start()
    settle(last, writers)
    last.kill()
    return counted(home, writers)


def settle(server: Killable, writers: Iterable[Writer]) -> None:
    """Everybody asks again what is unsure."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for writer in writers:
            if writer.unsure:
                writer.say(http, writer.unsure)


def counted(home: Home, writers: list[Writer]) -> Tally:
    """What the database has of what was said."""
    store = Store(home.db)
    kept = {
        (row["person"], row["idempotency_key"]): row["id"]
        for row in store.rows("select * from feedback")
    }
    said = {(w.person, key): id for w in writers for key, id in w.acknowledged.items()}
    (rows,) = store.row("select count(*) from feedback") or (0,)
    (damage,) = store.row("pragma integrity_check") or ("",)
    store.close()
    return Tally(
        acknowledged=len(said),
        unsure=sum(writer.unsure_often for writer in writers),
        lost=[id for place, id in said.items() if kept.get(place) != id],
        twice=rows - len(said),
        damage=damage,
    )
