"""Several replicas: adapters on all or none, and answers while some replicas are down."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from chatbot.engine.protocol import BASE, EngineBusyError, UnreachableError
from chatbot.engine.remote.remote_engine import RemoteEngine
from chatbot.engine.settings import EngineSettings
from chatbot.model.adapter import AdapterError
from tests.fakes.vllm_server import MODEL
from tests.fixtures.remote_base import LONG, Connect, RemoteBase, Serve, replica_failure
from tests.fixtures.waiting import wait_for_end, wait_for_first_token, wait_until


def test_an_adapter_is_loaded_on_every_replica_or_on_none(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    willing, small = serve(), serve(rank=8)
    engine, adapter = connect(willing, small), remote_base.adapters[0]
    with pytest.raises(AdapterError, match=rf"{small.url}.*max_lora_rank 8"):
        engine.load(adapter.name, adapter)
    assert not willing.loaded and engine.adapters() == [BASE]
    assert (
        wait_for_end(engine.submit(remote_base.request())).text == remote_base.expected[BASE].text
    )
    small.max_lora_rank = 16
    engine.load(adapter.name, adapter)
    assert adapter.name in willing.loaded and adapter.name in small.loaded


def test_one_adapter_is_loaded_by_two_processes_and_lost_by_neither(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server, adapter = serve(), remote_base.adapters[0]
    one, other = connect(server), connect(server)
    one.load(adapter.name, adapter)
    other.load(adapter.name, adapter)
    one.unload(adapter.name)
    wait_until(lambda: ("/v1/unload_lora_adapter", {"lora_name": adapter.name}) in server.requests)
    assert (
        wait_for_end(other.submit(remote_base.request(adapter.name))).text
        == remote_base.expected[adapter.name].text
    )


def test_a_question_waits_for_an_adapter_that_is_being_given_again(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server, adapter = serve(), remote_base.adapters[0]
    engine = connect(server)
    engine.load(adapter.name, adapter)
    server.blocked_models = {adapter.name}
    del server.loaded[adapter.name]  # as another process's unload does
    wait_until(lambda: [path for path, _ in server.requests].count("/v1/load_lora_adapter") == 2)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(engine.submit, remote_base.request(adapter.name))
        wait_until(lambda: asked.done() or bool(server.completions()))
        server.blocked_models = set()
        assert wait_for_end(asked.result()).text == remote_base.expected[adapter.name].text


# -- Several servers


def test_requests_go_where_fewest_run(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    servers = [serve(), serve()]
    engine = connect(*servers)
    for server in servers:
        server.blocked_models = {MODEL}
    streams = [engine.submit(remote_base.request()) for _ in range(4)]
    assert [len(server.completions()) for server in servers] == [2, 2]
    for server in servers:
        server.blocked_models = set()
    assert {wait_for_end(stream).text for stream in streams} == {remote_base.expected[BASE].text}


def test_a_request_whose_replica_dies_before_the_first_token_is_answered_by_another(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    servers, adapter = [serve(), serve()], remote_base.adapters[0]
    engine = connect(*servers)
    engine.load(adapter.name, adapter)
    for server in servers:
        server.blocked_models = {adapter.name}
    stream = engine.submit(remote_base.request(adapter.name))
    first, other = sorted(servers, key=lambda server: -len(server.completions()))
    other.blocked_models = set()
    first.kill()
    assert (
        wait_for_end(stream).text == remote_base.expected[adapter.name].text
        and stream.finish == "length"
    )
    assert len(other.completions()) == 1


def test_a_stream_whose_replica_dies_midway_ends_with_an_error_and_service_goes_on(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    servers = [serve(), serve()]
    engine = connect(*servers)
    stream = wait_for_first_token(engine.submit(remote_base.request(BASE, LONG)))
    first, other = sorted(servers, key=lambda server: -len(server.completions()))
    first.kill()
    assert wait_for_end(stream).finish == "error" and stream.text
    assert stream.error == "The server that was answering broke off."
    for _ in range(3):
        assert (
            wait_for_end(engine.submit(remote_base.request())).text
            == remote_base.expected[BASE].text
        )
    assert first.url in replica_failure(engine, first) and replica_failure(engine, other) is None


def test_a_replica_that_comes_back_empty_gets_its_adapters_before_it_is_asked(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    first, other = serve(), serve()
    engine, adapter = connect(first, other), remote_base.adapters[0]
    engine.load(adapter.name, adapter)
    first.kill()
    wait_until(lambda: replica_failure(engine, first) is not None)
    engine.load(remote_base.adapters[1].name, remote_base.adapters[1])
    first.start()
    wait_until(lambda: replica_failure(engine, first) is None)
    assert set(first.loaded) == {adapter.name for adapter in remote_base.adapters}
    other.kill()
    for name, expected in remote_base.expected.items():
        assert wait_for_end(engine.submit(remote_base.request(name))).text == expected.text


def test_a_replica_that_restarts_unnoticed_is_given_the_adapter_with_the_question(
    remote_base: RemoteBase, serve: Serve
) -> None:
    server, adapter = serve(), remote_base.adapters[0]
    engine = RemoteEngine(remote_base.base, EngineSettings(urls=[server.url]), check_seconds=600)
    engine.load(adapter.name, adapter)
    server.kill()
    server.start()
    assert (
        wait_for_end(engine.submit(remote_base.request(adapter.name))).text
        == remote_base.expected[adapter.name].text
    )
    engine.close()


def test_busy_is_said_when_every_replica_is_full(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    servers = [serve(), serve()]
    engine = connect(*servers)
    servers[0].busy = True
    for _ in range(2):
        assert (
            wait_for_end(engine.submit(remote_base.request())).text
            == remote_base.expected[BASE].text
        )
    servers[1].busy = True
    with pytest.raises(EngineBusyError):
        engine.submit(remote_base.request())


def test_with_no_replica_left_the_error_says_so_and_the_next_start_heals_it(
    remote_base: RemoteBase, serve: Serve, connect: Connect
) -> None:
    server = serve()
    engine = connect(server)
    server.kill()
    with pytest.raises(UnreachableError):
        engine.submit(remote_base.request())
    with pytest.raises(UnreachableError, match=server.url):
        engine.load(remote_base.adapters[0].name, remote_base.adapters[0])
    server.start()
    wait_until(lambda: replica_failure(engine, server) is None)
    assert (
        wait_for_end(engine.submit(remote_base.request())).text == remote_base.expected[BASE].text
    )
