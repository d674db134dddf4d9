"""What runs in a worker's process: the engine, its orders, and the news of its streams."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot.engine.protocol import EngineError, Request
from chatbot.engine.workers.messages import Account, Answer, News, Order, Ready
from feedback.errors import TalkbackError

if TYPE_CHECKING:
    from chatbot.engine.local.local_engine import LocalEngine

TICK_SECONDS = 0.02
"""News that come between two ticks are told together; first words and ends wait for none."""

ENVIRONMENT = {"GOMP_SPINCOUNT": "300000"}
"""For threads that compute one stream together: asleep after every product they are no faster than
one. It is OpenMP's own number where nobody sets a policy, as the server does."""


def work(pipe: Connection) -> None:
    """The life of a worker: until it is told to close, or the server is gone."""
    # A signal to the whole group is the server's business: it lets streams end first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s engine: %(message)s")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from transformers.utils.logging import disable_progress_bar

    from chatbot.engine.local import local_engine  # noqa: F401  torch, while the server imports other things

    disable_progress_bar()
    try:
        order: Order = pipe.recv()
    except EOFError:
        return
    try:
        # On a thread that ends: OpenMP keeps a team for each that has computed, and where there are
        # more of them than cores, all sleep after every product.
        with ThreadPoolExecutor(1) as thread:
            engine = thread.submit(_engine, order).result()
    except TalkbackError as error:
        pipe.send(error)
        return
    Desk(pipe, engine).serve()


def _engine(order: Order) -> "LocalEngine":
    from chatbot.engine.local.local_engine import LocalEngine
    from chatbot.model.base import load_base

    base = load_base(order.base, order.revision)
    if base.fingerprint != order.fingerprint:
        raise EngineError(f"The weights of {order.base} have changed. Start the server again.")
    return LocalEngine(base, order.settings, order.tried)


class Desk:
    """Takes orders for an engine, and tells what its streams say."""

    def __init__(self, pipe: Connection, engine: "LocalEngine") -> None:
        self._pipe, self._engine = pipe, engine
        self._sending = threading.Lock()
        self._accounts: dict[int, Account] = {}
        self._telling = threading.Lock()
        self._news = threading.Event()

    def serve(self) -> None:
        """Until ``None`` is ordered, or there is nobody to give orders."""
        self._send(self._ready())
        threading.Thread(target=self._tell_always, daemon=True).start()
        try:
            while (order := self._pipe.recv()) is not None:
                self._take(*order)
        except EOFError:
            pass  # the server is gone, and nobody hears what is said
        self._engine.close()
        self._tell()

    def _ready(self) -> Ready:
        engine = self._engine
        engine.wait_until_ready()
        stats = engine.stats()
        return Ready(
            slots=engine.settings.slots,
            max_length=engine.max_length,
            threads=engine.threads,
            device=stats["device"],
            parameters=engine.parameters,
            weights=stats["memory"]["weights"],
            grows=engine.uses_spare_cores,
        )

    def _take(self, kind: str, number: int, *told: object) -> None:
        match kind, *told:
            case "submit", Request() as request:
                self._submit(number, request)
            case ["cancel"]:
                if (account := self._accounts.get(number)) is not None:
                    account.stream.cancel()
            case "load", str(adapter), Path() as folder:
                self._beside(number, lambda: self._engine.load(adapter, folder))
            case "unload", str(adapter):
                self._engine.unload(adapter)
            case "share", int(cores):
                self._engine.set_available_cores(cores)
            case ["stats"]:
                self._answer(number, self._engine.stats)

    def _submit(self, number: int, request: Request) -> None:
        try:
            stream = self._engine.submit(request)
        except EngineError as error:  # the server knows better what it may ask
            self._send([(number, News([], [], ("error", str(error))))])
            return
        self._accounts[number] = Account(stream)
        stream.on_update(self._news.set)
        self._news.set()  # from now on there are ticks

    def _beside(self, number: int, work: Callable[[], object]) -> None:
        """Answer when it is done, and take orders meanwhile."""
        threading.Thread(target=self._answer, args=(number, work), daemon=True).start()

    def _answer(self, number: int, work: Callable[[], object]) -> None:
        try:
            answer = Answer(number, work())
        except Exception as error:  # it belongs to who gave the order
            answer = Answer(number, error=error)
        self._send(answer)

    def _tell_always(self) -> None:
        while True:
            self._news.wait(TICK_SECONDS if self._accounts else None)
            self._news.clear()
            self._tell()

    def _tell(self) -> None:
        """All that is new, in one piece."""
        with self._telling:
            batch = []
            for number, account in list(self._accounts.items()):
                if (news := account.news()) is not None:
                    batch.append((number, news))
                    if news.end is not None:
                        del self._accounts[number]
            if batch:
                self._send(batch)

    def _send(self, message: object) -> None:
        try:
            with self._sending:
                self._pipe.send(message)
        except OSError:
            pass  # the server is gone, as `serve` finds out
