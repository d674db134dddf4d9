"""Fakes the engine with scripted answers, word by word, and serves the pages on top of it.

Everything around it is real: the store, the registry, the turn, the server, the browser.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import Browser, Page, expect

from chatbot.chat_settings import ChatSettings
from chatbot.engine.protocol import (
    BASE,
    TOKEN_COUNTERS,
    EngineBusyError,
    Request,
    UnknownAdapterError,
)
from chatbot.engine.stream import Stream
from chatbot.model.adapter import verify_adapter
from chatbot.model.base import Base, load_base
from chatbot.server import create_app
from chatbot.service import Service
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.tiny_models import write_adapter, write_model

expect.set_options(timeout=30_000)  # a loaded machine paints late
ANSWER = "#tb-chat .bot-row:not(:has(.tb-note, .tb-typing, .thought-group))"


class ScriptedEngine:
    """Streams `answers` in their order, then "I have nothing to say."; `pause` seconds a word.
    What stands before "</think>" is a thought."""

    max_length = 4096
    submit_blocks = False
    unavailable_reason = None

    def __init__(self, answers: list[str] | None = None, pause: float = 0.01) -> None:
        self.answers = answers or []
        self.pause = pause
        self.busy = False
        self.base: Base | None = None
        """The base to verify adapters against, as every engine does; `open_service` sets it."""
        self._loaded = [BASE]
        self._threads: list[threading.Thread] = []

    def finish_answers(self) -> None:
        """End all answers at once, as they are scripted."""
        self.pause = 0
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def load(self, adapter_id: str, folder: Path) -> None:
        if adapter_id not in self._loaded:
            assert self.base is not None
            verify_adapter(folder, self.base, adapter_id)
            self._loaded.append(adapter_id)

    def unload(self, adapter_id: str) -> None:
        self._loaded.remove(adapter_id)

    def adapters(self) -> list[str]:
        return list(self._loaded)

    def submit(self, request: Request) -> Stream:
        if self.busy:
            raise EngineBusyError(9)
        if request.adapter not in self._loaded:
            raise UnknownAdapterError(request.adapter, self._loaded)
        stream = Stream(len(request.prompt_ids))
        warming = request.sampling.max_tokens == 2
        answer = "Hello" if warming or not self.answers else self.answers.pop(0)
        thread = threading.Thread(target=self._stream_words, args=(stream, answer), daemon=True)
        self._threads.append(thread)
        thread.start()
        return stream

    def _stream_words(self, stream: Stream, answer: str) -> None:
        thought, _, answer = answer.rpartition("</think>")
        words = [(word, "") for word in re.findall(r"\s*\S+", thought)]
        words += [("", word) for word in re.findall(r"\s*\S+", answer)]
        for thought, word in words:
            if stream.cancelled:
                return stream.end("cancelled")
            time.sleep(self.pause)
            stream.append_token(0, word, thought)
        stream.end("stop")

    def stats(self) -> dict[str, Any]:
        numbers = ("slots", "running", "waiting", "requests", *TOKEN_COUNTERS)
        return {"adapters": {}, **dict.fromkeys(numbers, 0)}

    def close(self) -> None:
        self.answers.clear()


def open_service(root: Path, engine: ScriptedEngine, **chat: Any) -> Service:
    """Open a service with a tiny base in `root` that answers through `engine`."""
    home = Home.find(root / "home")
    engine.base = base = load_base(str(write_model(root / "base")))
    settings = ChatSettings(**chat)
    return Service(
        home,
        Store(home.db),
        base,
        engine,
        chat_settings=settings,
        context_length=512,
        poll_seconds=0.1,
    )


def new_adapter(service: Service, seed: int = 1) -> str:
    """Register another adapter of the service's base; return its id."""
    folder = write_adapter(service.home.adapters, service.base, seed=seed)
    return service.registry.register(folder)


@contextmanager
def serve_pages(service: Service) -> Iterator[str]:
    """Serve the pages over real HTTP on a free port of loopback; yield their address."""
    config = uvicorn.Config(create_app(service), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def open_chat(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Open the chat page as a new person, in an English browser context of its own."""
    context = browser.new_context(**{"locale": "en-US"} | options)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(url)
    page.wait_for_function("() => localStorage.getItem('talkback_person')")
    yield page
    context.close()


def send_and_wait(page: Page, text: str) -> None:
    """Send a message, and wait for the whole answer."""
    answers = page.locator(ANSWER).count()
    send_message(page, text)
    expect(page.locator(ANSWER)).to_have_count(answers + 1)
    wait_until_idle(page)


def send_message(page: Page, text: str) -> None:
    """Send a message."""
    page.fill("#tb-composer textarea", text)
    page.press("#tb-composer textarea", "Enter")


def wait_until_idle(page: Page) -> None:
    """Wait until nothing streams."""
    expect(page.locator("#tb-composer .submit-button")).to_be_visible()
    expect(page.locator(".tb-typing")).to_have_count(0)
