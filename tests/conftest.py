"""What tests share: a home, its store, a tiny model, a service that speaks with it, a server.

Heavy imports stay inside the fixtures, so that tests of the store start at once.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from feedback.settings import Home
from feedback.store import Store

if TYPE_CHECKING:
    import httpx
    import openai
    from playwright.sync_api import Browser

    from chatbot.service import Service
    from tests.processes import Server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    store = Store(home.db)
    yield store
    store.close()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with room for long streams."""
    from tests.models import write_model

    return write_model(tmp_path_factory.mktemp("tiny") / "base", max_position_embeddings=8192)


@pytest.fixture
def service(home: Home, tiny_base: Path) -> "Iterator[Service]":
    """A tiny model that speaks in a fresh home, following promotions ten times a second."""
    from chatbot.service import Service
    from tests.processes import TOML

    home.toml.write_text(TOML)
    service = Service.open(home, str(tiny_base), poll_seconds=0.1)
    yield service
    service.close()


@pytest.fixture(scope="module")
def api_service(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> "Iterator[Service]":
    """A service that the tests of one module share, and whose API is at `address`."""
    from chatbot.service import Service
    from tests.processes import TOML

    home = Home.find(tmp_path_factory.mktemp("api"))
    home.toml.write_text(TOML)
    service = Service.open(home, str(tiny_base), poll_seconds=0.1)
    yield service
    service.close()


@pytest.fixture(scope="module")
def address(api_service: "Service") -> Iterator[str]:
    """Where the shared service's API is served."""
    from tests.asking import api_of

    with api_of(api_service) as address:
        yield address


@pytest.fixture(scope="module")
def http(address: str) -> "Iterator[httpx.Client]":
    """A plain client of it."""
    import httpx

    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(address: str) -> "Iterator[openai.OpenAI]":
    """OpenAI's own."""
    import openai

    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def start_server(home: Home, tiny_base: Path) -> "Iterator[Callable[..., Server]]":
    """Starts ``python -m chatbot.server`` on the home: a real process, over real HTTP."""
    from tests.processes import TOML, Server

    home.toml.write_text(TOML)
    with ExitStack() as running:

        def start(*args: str, base: str = str(tiny_base), **environment: str) -> Server:
            started = Server(home, "--base-model", base, *args, **environment)
            running.callback(started.kill)
            return started

        yield start


@pytest.fixture
def server(start_server: "Callable[..., Server]") -> "Server":
    """A server process that is ready."""
    return start_server().ready()


@pytest.fixture(scope="session")
def chromium() -> "Iterator[Browser]":
    """A real browser. Without one its tests are skipped, or fail where one is required."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        assert not os.environ.get("TALKBACK_REQUIRE_BROWSER"), "install chromium"
        pytest.skip("NO BROWSER: install chromium (apt-get install chromium) to test the pages")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
