"""Tests /metrics over real HTTP, read with Prometheus' own parser."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from chatbot.api import errors
from chatbot.api.openai.chat_request import ChatRequest
from chatbot.api.operations import monitoring
from chatbot.api.routes import add_routes
from chatbot.question import Question
from chatbot.service import Service
from chatbot.webhooks.delivery import WebhookDelivery, WebhookSettings
from feedback.review.decisions import decide
from feedback.store import Store
from tests.fixtures.conversations import add_answer
from tests.fixtures.http_server import serve_app
from tests.fixtures.tiny_models import write_adapter
from tests.fixtures.turns import begin_turn

ASK = [{"role": "user", "content": "When do you open?"}]


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    app = FastAPI()
    errors.add_error_handlers(app)
    app.add_middleware(monitoring.RequestCountMiddleware, metrics=service.metrics)
    add_routes(app, service, webhooks(service).pending)
    with serve_app(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def webhooks(service: Service) -> WebhookDelivery:
    return WebhookDelivery(service.home, service.store, WebhookSettings())


def figures(http: httpx.Client) -> dict[str, float]:
    """Return the samples of a scrape by name, with labels where there are any."""
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name + (f"{sorted(sample.labels.items())}" if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def by(name: str, **labels: str) -> str:
    return f"{name}{sorted(labels.items())}"


def ask(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"messages": ASK, "max_tokens": 8, **fields})


def test_the_figures_of_an_answer_are_its_speakers(http: httpx.Client, service: Service) -> None:
    before = figures(http)
    assert before["talkback_first_token_seconds_count"] == 0 == before["talkback_swaps_total"]
    body = ask(http, stream=True).text
    id = body.split('"id": "')[1].split('"')[0]
    speaker = service.store.speaker(id)
    assert speaker is not None and speaker.total_ms and speaker.first_token_ms
    after = figures(http)
    assert after["talkback_first_token_seconds_sum"] == speaker.first_token_ms / 1000
    assert after["talkback_answer_seconds_sum"] == speaker.total_ms / 1000
    assert after["talkback_answer_tokens_sum"] == speaker.completion_tokens > 1
    between = (speaker.total_ms - speaker.first_token_ms) / (speaker.completion_tokens - 1)
    assert after["talkback_inter_token_seconds_sum"] == pytest.approx(between / 1000)
    assert after[by("talkback_answers_total", source="model", finish=speaker.finish)] == 1
    decoded = "talkback_decoded_tokens_total"
    assert after[decoded] - before[decoded] == speaker.completion_tokens
    read, recalled = (
        after[name] - before[name]
        for name in ("talkback_prompt_tokens_total", "talkback_recalled_tokens_total")
    )
    assert read + recalled == speaker.prompt_tokens
    assert after["talkback_slots"] == 4 and after["talkback_streams_running"] == 0
    assert after["process_resident_memory_bytes"] > 1e7


def test_an_answer_that_a_reviewer_gave_is_no_figure_of_the_models(
    http: httpx.Client, service: Service
) -> None:
    decide(service.store, ask(http).json()["id"], "bob", "correct", "At nine.")
    assert ask(http).json()["choices"][0]["message"]["content"] == "At nine."
    after = figures(http)
    assert after[by("talkback_answers_total", source="approved", finish="stop")] == 1
    assert after["talkback_first_token_seconds_count"] == 1


def test_who_waits_and_who_is_refused_is_seen(http: httpx.Client, service: Service) -> None:
    sampling = ChatRequest.model_validate({"messages": ASK, "max_tokens": 4000})
    turns = [
        begin_turn(
            service, Question("Go", "ann", sampling=sampling.sampling(service.default_sampling))
        )
        for _ in range(8)
    ]
    assert ask(http).status_code == 429
    full = figures(http)
    for turn in turns:
        turn.close()
    assert full["talkback_refused_total"] == 1
    assert full["talkback_streams_running"] + full["talkback_streams_waiting"] == 8
    after = figures(http)
    assert after["talkback_streams_running"] == after["talkback_streams_waiting"] == 0
    assert after[by("talkback_answers_total", source="model", finish="cancelled")] == 8


def test_feedback_is_counted_by_kind_whoever_keeps_it(http: httpx.Client, service: Service) -> None:
    id = ask(http).json()["id"]
    for up in (True, False):
        http.post("/v1/feedback", json={"message_id": id, "kind": "thumb", "up": up})
    thumbs = by("talkback_feedback_total", kind="thumb")
    assert figures(http)[thumbs] == 2
    other = Store(service.home.db)
    other.add_feedback(add_answer(other, "Hello?"), "eve", "comment", {"text": "Hm."})
    other.close()
    for _ in range(2):
        after = figures(http)
        assert (after[thumbs], after[by("talkback_feedback_total", kind="comment")]) == (2, 1)
    assert after[by("talkback_feedback_total", kind="edit")] == 0


def test_a_swap_is_timed_from_its_promotion_and_names_who_speaks(
    http: httpx.Client, service: Service
) -> None:
    new = service.registry.register(write_adapter(service.home.adapters, service.base))
    service.registry.promote(new, "person", "eve", "reads better")
    service.rollout.follow()
    after = figures(http)
    assert after["talkback_swaps_total"] == after["talkback_swap_seconds_count"] == 1
    assert 0 <= after["talkback_swap_seconds_sum"] < 60
    base = {"base": service.base.name, "base_revision": service.base.revision}
    assert after[by("talkback_serving_info", adapter=new, **base)] == 1
    assert len([name for name in after if name.startswith("talkback_serving_info")]) == 1
    assert after["talkback_promotion_refused"] == 0


def test_a_promotion_that_cannot_speak_is_seen(http: httpx.Client, service: Service) -> None:
    folder = write_adapter(service.home.adapters, service.base, seed=2)
    new = service.registry.register(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    service.registry.promote(new, "person", "eve", "a damaged one")
    service.rollout.follow()
    after = figures(http)
    assert (after["talkback_promotion_refused"], after["talkback_swaps_total"]) == (1, 0)
    ready = http.get("/readyz")
    assert ready.status_code == 200 and new in ready.json()["warning"]


def test_requests_are_counted_by_template_and_never_by_words_from_outside(
    http: httpx.Client,
) -> None:
    for name, method in (("a", "PURGE"), ("b", "LOCK"), ("c", "MKCOL")):
        assert http.get(f"/v1/models/{name}").status_code == 404
        http.get(f"/v1/{name}")
        http.get(f"/{name}")
        http.request(method, "/healthz")
    ask(http)
    ask(http, n=99)
    counted = {
        name: value for name, value in figures(http).items() if "http_requests_total" in name
    }
    metric = "talkback_http_requests_total"
    assert counted[by(metric, method="GET", route="/v1/models/{name}", status="404")] == 3
    assert counted[by(metric, method="GET", route="/v1/{rest:path}", status="404")] == 3
    assert counted[by(metric, method="GET", route="none", status="404")] == 3
    chat = {"method": "POST", "route": "/v1/chat/completions"}
    assert (
        counted[by(metric, **chat, status="200")] == counted[by(metric, **chat, status="400")] == 1
    )
    assert len(counted) == 6, counted


def test_a_handler_that_fails_is_counted_too(service: Service) -> None:
    app = FastAPI()
    errors.add_error_handlers(app)
    app.add_middleware(monitoring.RequestCountMiddleware, metrics=service.metrics)
    app.add_api_route("/broken", lambda: 1 / 0)
    with serve_app(app) as address:
        assert httpx.get(f"{address}/broken").status_code == 500
    labels = {"method": "GET", "route": "/broken", "status": "500"}
    (requests,) = service.metrics.requests.collect()
    assert labels in [sample.labels for sample in requests.samples]
