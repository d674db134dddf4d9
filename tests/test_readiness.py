"""Tests when a server counts as ready: once a token was made, and until the engine fails."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from chatbot.engine.local.local_engine import LocalEngine
from chatbot.service import Service
from feedback.settings import Home
from tests.fixtures.waiting import wait_until

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}


def failing(chunks: Any) -> torch.Tensor:
    raise RuntimeError("the weights are cut short")


@pytest.fixture
def runner(api_service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the runner of the service's engine, whose forward a test may replace."""
    engine = api_service.engine
    assert isinstance(engine, LocalEngine)
    yield engine.scheduler.runner
    monkeypatch.undo()
    wait_until(lambda: api_service.rollout.readiness.unavailable_reason is None)


def status(http: httpx.Client) -> int:
    return http.get("/readyz").status_code


def test_an_engine_that_fails_every_chat_is_unready_until_it_makes_a_token(
    http: httpx.Client, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200 == status(http)
    with monkeypatch.context() as broken:
        broken.setattr(runner, "forward", failing)
        refused = http.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        ready = http.get("/readyz")
        assert ready.status_code == 503 and "cut short" in ready.json()["reason"]
        assert int(ready.headers["retry-after"]) >= 1
        assert http.get("/healthz").status_code == 200
    wait_until(lambda: status(http) == 200)


def test_a_chats_own_token_makes_it_ready_again(
    http: httpx.Client, api_service: Service, runner: Any
) -> None:
    api_service.rollout.readiness.record_failure("it failed")
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert status(http) == 200


def test_an_engine_that_fails_is_asked_now_and_then_only(
    http: httpx.Client, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def count(chunks: Any) -> torch.Tensor:
        asked.append(chunks)
        return failing(chunks)

    with monkeypatch.context() as broken:
        broken.setattr(runner, "forward", count)
        http.post("/v1/chat/completions", json=CHAT)
        for _ in range(50):
            assert status(http) == 503
        assert len(asked) < 10


def test_a_server_that_nobody_talks_to_stays_ready_and_asks_nothing(
    http: httpx.Client, api_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = api_service.engine.stats()["requests"]
    for _ in range(20):
        assert status(http) == 200
    assert api_service.engine.stats()["requests"] == before


def test_a_stream_that_breaks_off_before_its_first_text_is_an_error_with_a_status(
    http: httpx.Client, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(runner, "forward", failing)
        answer = http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert "cut short" in answer.json()["error"]["message"]


@pytest.mark.slow
def test_a_server_whose_base_makes_no_token_starts_unready(
    home: Home, tiny_base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.toml.write_text("[engine]\nworkers = 0\nthreads = 1\n")

    def broken_step(self: Any, *_: Any) -> None:
        raise RuntimeError("the weights are cut short")

    monkeypatch.setattr("chatbot.engine.local.scheduler.Scheduler._process_logits", broken_step)
    service = Service.open(home, str(tiny_base))
    assert "cut short" in (service.rollout.readiness.unavailable_reason or "")
    monkeypatch.undo()
    wait_until(lambda: service.rollout.readiness.unavailable_reason is None)
    service.close()
