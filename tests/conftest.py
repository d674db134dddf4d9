"""Defines what tests share: a home, its store, tiny models, services and engines.

Heavy imports stay inside the fixtures, so that tests of the store start at once.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from feedback.settings import Home
from feedback.store import Store

if TYPE_CHECKING:
    import httpx
    import openai
    from playwright.sync_api import Browser, Page

    from chatbot.engine.local.local_engine import LocalEngine
    from chatbot.service import Service
    from tests.fakes.scripted_engine import ScriptedEngine
    from tests.fakes.vllm_server import FakeVllm
    from tests.fixtures.access_server import AccessServer
    from tests.fixtures.reference_model import Oracle
    from tests.fixtures.remote_base import Connect, RemoteBase, Serve
    from tests.fixtures.server_process import ServerProcess


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
    """Write a tiny Llama with a context of 8192 tokens, for long streams; return its folder."""
    from tests.fixtures.tiny_models import write_model

    return write_model(tmp_path_factory.mktemp("tiny") / "base", max_position_embeddings=8192)


@pytest.fixture
def service(home: Home, tiny_base: Path) -> "Iterator[Service]":
    """Open a service with a tiny model in a fresh home; it follows promotions every 0.1 s."""
    from chatbot.service import Service
    from tests.fixtures.server_process import SERVER_TOML

    home.toml.write_text(SERVER_TOML)
    service = Service.open(home, str(tiny_base), poll_seconds=0.1)
    yield service
    service.close()


@pytest.fixture(scope="module")
def api_service(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> "Iterator[Service]":
    """Open a service that the tests of one module share, and whose API is at `address`."""
    from chatbot.service import Service
    from tests.fixtures.server_process import SERVER_TOML

    home = Home.find(tmp_path_factory.mktemp("api"))
    home.toml.write_text(SERVER_TOML)
    service = Service.open(home, str(tiny_base), poll_seconds=0.1)
    yield service
    service.close()


@pytest.fixture(scope="module")
def address(api_service: "Service") -> Iterator[str]:
    """Serve the shared service's API; yield its address."""
    from tests.fixtures.api_client import serve_api

    with serve_api(api_service) as address:
        yield address


@pytest.fixture(scope="module")
def http(address: str) -> "Iterator[httpx.Client]":
    """Open an HTTP client of the shared service's API."""
    import httpx

    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(address: str) -> "Iterator[openai.OpenAI]":
    """Open OpenAI's client of the shared service's API."""
    import openai

    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def access_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[AccessServer]":
    """Start a server where nobody chats without a key, with a key of every role."""
    from tests.fixtures.access_server import open_access_server

    with open_access_server(tmp_path_factory.mktemp("access")) as server:
        yield server


@pytest.fixture
def start_server(home: Home, tiny_base: Path) -> "Iterator[Callable[..., ServerProcess]]":
    """Return a function that starts ``python -m chatbot.server`` on the home, a real process."""
    from tests.fixtures.server_process import SERVER_TOML, ServerProcess

    home.toml.write_text(SERVER_TOML)
    with ExitStack() as running:

        def start(*args: str, base: str = str(tiny_base), **environment: str) -> ServerProcess:
            started = ServerProcess(home, "--base-model", base, *args, **environment)
            running.callback(started.kill)
            return started

        yield start


@pytest.fixture
def server(start_server: "Callable[..., ServerProcess]") -> "ServerProcess":
    """Start a server process; return it once it is ready."""
    return start_server().ready()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a browser, so that ``-m browser`` runs just these."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that ask for any oracle with a model of each family."""
    if "any_oracle" in metafunc.fixturenames:
        from tests.fixtures.tiny_models import FAMILIES

        metafunc.parametrize("any_oracle", FAMILIES, indirect=True, scope="module")


@pytest.fixture(scope="module")
def any_oracle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "Oracle":
    """Write a tiny model of one family, with its answers by transformers and PEFT."""
    from tests.fixtures.reference_model import write_oracle

    return write_oracle(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> "Oracle":
    """Write a tiny Llama, with its answers by transformers and PEFT."""
    from tests.fixtures.reference_model import write_oracle

    return write_oracle(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def engine(oracle: "Oracle") -> "Iterator[LocalEngine]":
    """Start the local engine on the oracle's model and adapters, on one thread."""
    from tests.fixtures.reference_model import start_engine

    engine = start_engine(oracle)
    yield engine
    engine.close()


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute by torch, as on a machine that has no kernels."""
    monkeypatch.setattr("chatbot.engine.local.kernels.library.kernel_library", lambda: None)


@pytest.fixture(scope="module")
def remote_base(tmp_path_factory: pytest.TempPathFactory) -> "RemoteBase":
    """Write a tiny base and two adapters, and record what the local engine answers."""
    from tests.fixtures.remote_base import write_remote_base

    return write_remote_base(tmp_path_factory.mktemp("remote_base"))


@pytest.fixture
def serve(remote_base: "RemoteBase") -> "Iterator[Serve]":
    """Return a function that starts fake vLLM servers of the base."""
    from tests.fakes.vllm_server import FakeVllm

    with ExitStack() as running:

        def start(**options: Any) -> FakeVllm:
            server = FakeVllm(remote_base.folder, **options)
            running.callback(server.kill)
            return server

        yield start


@pytest.fixture
def connect(remote_base: "RemoteBase", serve: "Serve") -> "Iterator[Connect]":
    """Return a function that opens engines over servers, which they check every 0.1 s."""
    from chatbot.engine.remote.remote_engine import RemoteEngine
    from chatbot.engine.settings import EngineSettings

    with ExitStack() as running:

        def start(*servers: "FakeVllm", **settings: Any) -> RemoteEngine:
            chosen = EngineSettings(urls=[server.url for server in servers], **settings)
            engine = RemoteEngine(remote_base.base, chosen, check_seconds=0.1)
            running.callback(engine.close)
            return engine

        yield start


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Return the folder of SmolLM2-135M-Instruct; skip where it cannot be fetched."""
    from tests.fixtures.real_model import find_real_model

    return find_real_model()


@pytest.fixture(scope="session")
def chromium() -> "Iterator[Browser]":
    """Start a real browser; without one, skip its tests, or fail where one is required."""
    from playwright.sync_api import sync_playwright

    if os.environ.get("TALKBACK_NO_BROWSER"):
        pytest.skip("NO BROWSER: TALKBACK_NO_BROWSER hides it")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        assert not os.environ.get("TALKBACK_REQUIRE_BROWSER"), "install chromium"
        pytest.skip("NO BROWSER: install chromium (apt-get install chromium) to test the pages")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chat_engine() -> "ScriptedEngine":
    """Make the engine whose answers a test of the chat page scripts."""
    from tests.fakes.scripted_engine import ScriptedEngine

    return ScriptedEngine()


@pytest.fixture(scope="module")
def chat_service(
    tmp_path_factory: pytest.TempPathFactory, chat_engine: "ScriptedEngine"
) -> "Service":
    """Open the service behind the chat page, which the tests of one module share."""
    from tests.fakes.scripted_engine import open_service

    examples = ["When do you open?", "Do you ship abroad?"]
    root = tmp_path_factory.mktemp("chat")
    return open_service(root, chat_engine, title="Willow & Finch", examples=examples)


@pytest.fixture(scope="module")
def chat_url(chat_service: "Service") -> Iterator[str]:
    """Serve the chat page; yield its address."""
    from tests.fakes.scripted_engine import serve_pages

    with serve_pages(chat_service) as address:
        yield address


@pytest.fixture
def page(
    chromium: "Browser", chat_url: str, chat_service: "Service", chat_engine: "ScriptedEngine"
) -> "Iterator[Page]":
    """Open the chat page as a new person, with an engine that nothing is scripted for yet; no
    answer is left to be stored during the next test."""
    from tests.fakes.scripted_engine import open_chat
    from tests.fixtures.waiting import wait_until

    chat_engine.answers, chat_engine.pause, chat_engine.busy = [], 0.01, False
    with open_chat(chromium, chat_url) as page:
        yield page
    chat_engine.finish_answers()
    wait_until(lambda: all(turn._stored for turn in chat_service.list_open_turns()))


@pytest.fixture(scope="session")
def emulated_amx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile kernels whose instructions of AMX are emulated; return the library."""
    from tests.fixtures.kernel_builds import compile_emulation

    return compile_emulation(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["AVX-512", "AVX512-BF16", "AMX"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Compute with the kernels for CPUs of one kind: at most this one's, or AMX by emulation."""
    import torch

    from chatbot.engine.local.kernels import library
    from tests.fixtures.kernel_builds import use_emulation

    if request.param == "AVX-512":
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    elif request.param == "AVX512-BF16":
        monkeypatch.setattr(library, "may_use_amx", lambda: False)
    elif not library.may_use_amx():
        use_emulation(monkeypatch, request.getfixturevalue("emulated_amx"))
    library.kernel_library.cache_clear()
    yield request.param
    library.kernel_library.cache_clear()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Compute on one thread, then on two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
