"""The remote engine, against loopback servers with vLLM's routes."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatbot.engine import factory
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.protocol import (
    BASE,
    Engine,
    EngineClosedError,
    EngineError,
    PromptTooLongError,
    Request,
    Sampling,
    UnknownAdapterError,
)
from chatbot.engine.remote.remote_engine import RemoteEngine
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.engine.workers.workers_engine import WorkersEngine
from chatbot.model import lora
from chatbot.model.adapter import WEIGHTS_FILE, AdapterError, write_manifest
from chatbot.model.base import load_base
from chatbot.model.chat_template import encode
from chatbot.question import Question
from chatbot.rollout import MAX_PINNED
from chatbot.service import Service
from feedback.settings import Home, SettingsError
from tests.fakes.vllm_server import MODEL, FakeVllm
from tests.fixtures import tiny_models
from tests.fixtures.remote_base import LONG, QUESTION, Connect, RemoteBase, Serve
from tests.fixtures.thinking_base import script_tokens, write_thinking_base
from tests.fixtures.turns import begin_turn
from tests.fixtures.waiting import wait_for_end, wait_for_first_token, wait_until

# -- One server


def test_every_voice_says_what_the_in_process_engine_says(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server = serve()
    engine = connect(server)
    assert isinstance(engine, Engine)
    for adapter in remote_base.adapters:
        engine.load(adapter.name, adapter)
    assert engine.adapters() == [BASE, *(adapter.name for adapter in remote_base.adapters)]
    streams = {name: engine.submit(remote_base.request(name)) for name in remote_base.expected}
    for name, stream in streams.items():
        deltas = list(stream)
        assert len(deltas) > 1 and "".join(deltas) == stream.text == remote_base.expected[name].text
        assert stream.ids == remote_base.expected[name].ids
        assert (stream.finish, stream.error) == (remote_base.expected[name].finish, None)
        assert stream.completion_tokens == len(stream.ids)
        assert stream.first_token_ms is not None and stream.total_ms is not None
        assert 0 < stream.first_token_ms <= stream.total_ms
    stats, expected = engine.stats(), remote_base.expected.values()
    assert (stats["running"], stats["requests"]) == (0, 3)
    assert stats["prompt"] == sum(stream.prompt_tokens for stream in expected)
    assert stats["decoded"] == sum(stream.completion_tokens for stream in expected)


def test_an_answer_has_the_room_that_the_server_leaves(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server = serve()
    server.max_model_len = 100
    engine = connect(server)
    request = remote_base.request(BASE, LONG)
    stream = wait_for_end(engine.submit(request))
    assert engine.max_length == 100 and stream.finish == "length"
    assert len(request.prompt_ids) + stream.completion_tokens == 100
    with pytest.raises(PromptTooLongError, match="100"):
        engine.submit(Request([5] * 100))


def test_cancelling_frees_the_servers_side(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server = serve()
    engine = connect(server)
    stream = wait_for_first_token(engine.submit(remote_base.request(BASE, LONG)))
    stream.cancel()
    assert wait_for_end(stream).finish == "cancelled" and stream.text
    wait_until(lambda: server.running == 0)
    server.blocked_models = {MODEL}  # no token comes that could tell the reader to stop
    waiting = engine.submit(remote_base.request(BASE, LONG))
    waiting.cancel()
    assert wait_for_end(waiting).finish == "cancelled" and waiting.text == ""
    wait_until(lambda: server.running == 0)
    assert engine.stats()["running"] == 0


def test_closing_ends_streams_as_cancelled(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    engine = connect(serve())
    stream = wait_for_first_token(engine.submit(remote_base.request(BASE, LONG)))
    engine.close()
    assert wait_for_end(stream).finish == "cancelled"
    with pytest.raises(EngineClosedError):
        engine.submit(remote_base.request())


def test_requests_that_make_no_sense_are_not_sent(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server = serve()
    engine = connect(server)
    with pytest.raises(UnknownAdapterError, match="a-unknown"):
        engine.submit(remote_base.request("a-unknown"))
    with pytest.raises(EngineError, match="temperature"):
        engine.submit(remote_base.request(BASE, Sampling(temperature=-1)))
    with pytest.raises(EngineError, match="empty"):
        engine.submit(Request([]))
    assert server.requests == []


# -- Adapters


def test_an_unloaded_adapter_leaves_the_servers_when_its_last_stream_has_ended(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server, adapter = serve(), remote_base.adapters[0]
    engine = connect(server)
    engine.load(adapter.name, adapter)
    server.blocked_models.add(adapter.name)
    stream = engine.submit(remote_base.request(adapter.name))
    engine.unload(adapter.name)
    with pytest.raises(UnknownAdapterError):
        engine.submit(remote_base.request(adapter.name))
    time.sleep(0.1)
    assert adapter.name in server.loaded and engine.stats()["adapters"][adapter.name] == 1
    stream.cancel()
    wait_until(lambda: not server.loaded)
    server.blocked_models.clear()
    engine.load(adapter.name, adapter)
    assert (
        wait_for_end(engine.submit(remote_base.request(adapter.name))).text
        == remote_base.expected[adapter.name].text
    )


@pytest.mark.parametrize("damage", ["nan", "hash", "shape"])
def test_a_damaged_adapter_is_refused_before_a_server_hears_of_it(
    remote_base: RemoteBase, serve: Serve, connect: Connect, tmp_path: Path, damage: str
) -> None:
    server = serve()
    engine = connect(server)
    folder = tiny_models.write_adapter(tmp_path, load_base(str(remote_base.folder)), seed=9)
    weights = load_file(folder / WEIGHTS_FILE)
    name = next(name for name in weights if "lora_B" in name)
    weights[name] = weights[name][1:] if damage == "shape" else weights[name] * torch.nan
    save_file(weights, folder / WEIGHTS_FILE)
    if damage != "hash":
        folder = folder.rename(tmp_path / write_manifest(folder, remote_base.base))
    with pytest.raises(AdapterError):
        engine.load(folder.name, folder)
    assert server.requests == [] and engine.adapters() == [BASE]
    assert (
        wait_for_end(engine.submit(remote_base.request())).text == remote_base.expected[BASE].text
    )


def test_an_adapter_of_another_base_is_refused(
    remote_base: RemoteBase, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    other = load_base(str(tiny_models.write_model(tmp_path / "other", seed=5)))
    folder = tiny_models.write_adapter(tmp_path, other)
    with pytest.raises(AdapterError, match="own base"):
        connect(serve()).load(folder.name, folder)


def test_adapters_are_found_where_the_servers_see_them(
    remote_base: RemoteBase, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    server, adapter = serve(), remote_base.adapters[0]
    (tmp_path / "mnt").symlink_to(adapter.parent)
    engine = connect(server, adapters_path=f"{tmp_path}/mnt/")
    engine.load(adapter.name, adapter)
    assert server.loaded == {adapter.name: f"{tmp_path}/mnt/{adapter.name}"}
    lost = connect(server, adapters_path="/nowhere")
    with pytest.raises(AdapterError, match=r"/nowhere.*adapters_path"):
        lost.load(remote_base.adapters[1].name, remote_base.adapters[1])


# -- The start


def test_settings_that_cannot_work_are_one_clear_error_at_the_start(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    def error(*servers: FakeVllm, **settings: Any) -> str:
        with pytest.raises(EngineError) as caught:
            connect(*servers, **settings)
        return str(caught.value)

    server, locked = serve(), serve(key="secret")
    assert "kind = 'torch'" in error()
    assert "tiny/base, not 'other'" in error(server, model="other")
    assert "api_key" in error(locked)
    connect(locked, api_key="secret")
    server.kill()
    assert f"{server.url} does not answer" in error(server)
    with pytest.raises(EngineError, match="gpu1:8000"):
        factory.start_engine(EngineSettings(urls=["gpu1:8000"]), str(remote_base.folder))


def test_auto_picks_the_servers_where_there_are_some(
    remote_base: RemoteBase, serve: Serve, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.toml.write_text(f'[engine]\nthreads = 1\nurls = ["{serve().url}/v1/"]\n')
    kinds = {}
    for kind in ("auto", "torch", "remote"):
        monkeypatch.setenv("TALKBACK_ENGINE_KIND", kind)
        base, engine = factory.start_engine(EngineSettings.read(home), str(remote_base.folder))
        kinds[kind] = (type(engine), base.model.device.type)
        engine.close()
    remote = (RemoteEngine, "meta")
    assert kinds == {"auto": remote, "torch": (WorkersEngine, "meta"), "remote": remote}
    monkeypatch.setenv("TALKBACK_ENGINE_KIND", "vllm")
    with pytest.raises(SettingsError, match="kind"):
        EngineSettings.read(home)


def test_the_settings_of_the_scale_page_are_read(home: Home) -> None:
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"^```toml\n(.*?)^```$", page, re.M | re.S)
    home.toml.write_text(settings)
    read = EngineSettings.read(home)
    assert (read.kind, len(read.urls), read.adapters_path) == ("auto", 2, "/mnt/adapters")
    assert f"--max-lora-rank {lora.RANK} " in page and f"--max-loras {MAX_PINNED + 2} " in page


# -- Services


@pytest.fixture
def open_service(home: Home, remote_base: RemoteBase) -> Iterator[Callable[..., Service]]:
    """Yield a function that opens services on one home, each with its own connections."""
    with ExitStack() as running:

        def start(*servers: FakeVllm, more: str = "") -> Service:
            urls = ", ".join(f'"{server.url}"' for server in servers)
            home.toml.write_text(f"[engine]\nurls = [{urls}]\n{more}")
            service = Service.open(home, str(remote_base.folder))
            running.callback(service.close)
            return service

        yield start


Open = Callable[..., Service]


def answered(service: Service) -> tuple[str, str]:
    """Ask `QUESTION`; return the adapter that answered and its text."""
    turn = begin_turn(service, Question(QUESTION, "ann", sampling=Sampling(max_tokens=24)))
    text = "".join(turn)
    return turn.speaker.adapter, text


def test_a_promotion_is_followed_by_all_services_within_a_second_and_drops_nothing(
    remote_base: RemoteBase, serve: Serve, open_service: Open
) -> None:
    servers = [serve(), serve()]
    services = [open_service(*servers), open_service(*servers)]
    first = services[0].speaking
    assert first != BASE and services[1].speaking == first
    for server in servers:
        server.blocked_models = {first}
    running = [
        begin_turn(service, Question(QUESTION, "ann", sampling=Sampling(max_tokens=24)))
        for service in services
        for _ in range(2)
    ]
    new = services[0].registry.register(
        tiny_models.write_adapter(
            services[0].home.adapters, load_base(str(remote_base.folder)), seed=1
        )
    )
    services[0].registry.promote(new, "person", "ann", "try")
    seconds = wait_until(lambda: all(service.speaking == new for service in services))
    assert seconds < 5, "a quiet machine takes half a second"
    for service in services:
        assert answered(service) == (new, remote_base.expected[new].text)
    for server in servers:
        server.blocked_models = set()
    for turn in running:
        text = "".join(turn)
        assert text == remote_base.expected[BASE].text  # adapter 0 equals the base
        assert turn.speaker.adapter == first and turn.speaker.finish in ("length", "stop")
    for server in servers:
        wait_until(lambda server=server: set(server.loaded) == {new})  # type: ignore[misc]


def test_a_promotion_waits_for_servers_that_are_down(
    remote_base: RemoteBase, serve: Serve, open_service: Open
) -> None:
    server = serve()
    service = open_service(server)
    first = service.speaking
    server.kill()
    new = service.registry.register(
        tiny_models.write_adapter(service.home.adapters, load_base(str(remote_base.folder)), seed=1)
    )
    service.registry.promote(new, "person", "ann", "try")
    wait_until(lambda: "has to wait" in service.warning)
    assert service.speaking == first
    server.start()
    wait_until(lambda: service.speaking == new)
    assert answered(service) == (new, remote_base.expected[new].text) and service.warning == ""


def test_a_server_without_adapters_speaks_as_the_base_and_people_are_told_why(
    remote_base: RemoteBase, serve: Serve, open_service: Open
) -> None:
    server = serve(lora=False)
    server.omits_token_ids = True
    service = open_service(server, more='prompt = "text"\n')
    assert "--enable-lora" in service.warning and service.speaking == BASE
    assert answered(service) == (BASE, remote_base.expected[BASE].text)
    body = server.completions()[-1]
    assert isinstance(body["prompt"], str) and body["prompt"].startswith("<|im_start|>user")
    assert not {"top_k", "min_p", "stop_token_ids", "return_token_ids"} & body.keys()


# -- Thoughts


@pytest.fixture(scope="module")
def thinking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVllm]:
    server = FakeVllm(write_thinking_base(tmp_path_factory.mktemp("thinking")))
    yield server
    server.kill()


@pytest.mark.parametrize("prompt", ["tokens", "text"])
@pytest.mark.parametrize(
    ("thought", "answer", "budget", "expected"),
    [
        ("<think>\nHm, so\n</think>\n\n", "At ten.", 60, "Hm, so"),
        ("<think>\nHm, hm, hm, hm, hm", "At ten.", 14, "Hm, hm,"),
        ("Well, ", "At ten.", 60, ""),
    ],
)
def test_a_thought_is_asked_for_and_then_the_answer(
    thinking_server: FakeVllm,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    thought: str,
    answer: str,
    budget: int,
    expected: str,
) -> None:
    """The server generates the thought, and then the answer behind it, by two requests."""
    server, tokenize = thinking_server, thinking_server.base.tokenizer
    marked = thought.startswith("<think>")
    scripts = iter([thought + answer, answer if marked else thought + answer])

    def submit(request: Request) -> Stream:
        script = tokenize(f"{next(scripts)}<|im_end|>", add_special_tokens=False)["input_ids"]
        script_tokens(monkeypatch, script)
        return LocalEngine.submit(server.engine, request)

    monkeypatch.setattr(server.engine, "submit", submit)
    settings = EngineSettings(urls=[server.url], prompt=prompt)  # type: ignore[arg-type]
    engine = RemoteEngine(load_base(server.base.name, weights=False), settings)
    ids = encode(tokenize, [{"role": "user", "content": QUESTION}], thinking=True)
    stream = engine.submit(Request(ids, BASE, Sampling(max_tokens=20, thinking=budget)))
    stream.wait(20)
    engine.close()
    assert (stream.thought, stream.finish) == (expected, "stop")
    assert stream.text == (answer if marked else thought + answer)
    second = server.completions()[-1]["prompt"]
    second = second if isinstance(second, str) else tokenize.decode(second)
    behind = f"<think>\n{expected}\n</think>\n\n" if marked else ""
    assert second == tokenize.decode(ids) + behind
    behind_ids = tokenize(behind, add_special_tokens=False)["input_ids"]
    assert stream.thought_tokens == len(behind_ids)
    spoken = tokenize(f"{stream.text}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert stream.completion_tokens == len(behind_ids) + len(spoken)
