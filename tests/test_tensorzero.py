"""Tests TensorZero's feedback over real HTTP: what each metric becomes, and what is refused."""

from typing import Any

import httpx
import pytest

from chatbot.service import Service
from tests.fixtures.api_client import post_completion, read_error


@pytest.fixture(scope="module")
def service(api_service: Service) -> Service:
    return api_service


@pytest.mark.parametrize(
    ("metric", "value", "kind", "stored"),
    [
        ("thumbs_up", True, "thumb", {"up": True}),
        ("thumb", False, "thumb", {"up": False}),
        ("comment", "Too long.", "comment", {"text": "Too long."}),
        ("demonstration", "At ten.", "edit", {"text": "At ten."}),
    ],
)
def test_a_metric_is_feedback_of_the_person_who_got_the_answer(
    http: httpx.Client, service: Service, metric: str, value: Any, kind: str, stored: dict[str, Any]
) -> None:
    id = post_completion(http, user="ann").json()["id"]
    answer = http.post(
        "/feedback", json={"inference_id": id, "metric_name": metric, "value": value, "tags": {}}
    )
    (row,) = service.store.feedback_on(id)
    assert answer.json() == {"feedback_id": row.id}
    assert (row.kind, row.value, row.person) == (kind, stored, "ann")


def test_an_episode_is_a_conversation_and_its_last_answer_is_meant(
    http: httpx.Client, service: Service
) -> None:
    first = post_completion(http).json()
    conversation_id = first["metadata"]["conversation_id"]
    last = post_completion(http, metadata={"conversation_id": conversation_id}).json()["id"]
    body = {"episode_id": conversation_id, "metric_name": "thumbs_up", "value": True}
    assert http.post("/feedback", json=body).status_code == 200
    assert len(service.store.feedback_on(last)) == 1 and not service.store.feedback_on(first["id"])


def test_tags_name_the_person_and_the_key(http: httpx.Client, service: Service) -> None:
    id = post_completion(http).json()["id"]
    tags = {"user": "bob", "idempotency_key": "t-1", "app": "shop"}
    body = {"inference_id": id, "metric_name": "thumb", "value": True, "tags": tags}
    assert http.post("/feedback", json=body).json() == http.post("/feedback", json=body).json()
    (row,) = service.store.feedback_on(id)
    assert (row.person, row.idempotency_key) == ("bob", "t-1")
    assert read_error(http.post("/feedback", json={**body, "value": False}))[0] == 409


def test_a_dry_run_checks_and_keeps_nothing(http: httpx.Client, service: Service) -> None:
    id = post_completion(http).json()["id"]
    body = {"inference_id": id, "metric_name": "demonstration", "value": "At ten.", "dryrun": True}
    assert http.post("/feedback", json=body).json()["feedback_id"].startswith("fb-")
    assert read_error(http.post("/feedback", json={**body, "value": " "}))[0] == 400
    assert read_error(http.post("/feedback", json={**body, "inference_id": "msg-0"}))[0] == 404
    assert service.store.feedback_on(id) == []


@pytest.mark.parametrize(
    ("fields", "param", "quoted"),
    [
        ({"metric_name": "accuracy", "value": 0.7}, "metric_name", "there are thumb"),
        ({"metric_name": "task_success", "value": True}, "metric_name", "there are thumb"),
        ({"metric_name": "thumb", "value": 0.7}, "value", "true or false, not 0.7"),
        ({"metric_name": "thumb", "value": "true"}, "value", "true or false"),
        ({"metric_name": "comment", "value": True}, "value", "a text, not True"),
        ({"metric_name": "thumb", "value": True, "episode_id": "con-1"}, "inference_id", "either"),
        ({"metric_name": "thumb", "value": True, "inference_id": None}, "inference_id", "either"),
    ],
)
def test_what_has_no_honest_meaning_here_is_refused(
    http: httpx.Client, service: Service, fields: dict[str, Any], param: str, quoted: str
) -> None:
    id = post_completion(http).json()["id"]
    status, error = read_error(http.post("/feedback", json={"inference_id": id, **fields}))
    assert (status, error["param"]) == (400, param) and quoted in error["message"]
    assert service.store.feedback_on(id) == []


def test_a_demonstration_is_of_one_answer(http: httpx.Client) -> None:
    conversation_id = post_completion(http).json()["metadata"]["conversation_id"]
    body = {"episode_id": conversation_id, "metric_name": "demonstration", "value": "At ten."}
    assert read_error(http.post("/feedback", json=body))[1]["param"] == "inference_id"
    assert read_error(http.post("/feedback", json={**body, "episode_id": "con-0"}))[0] == 404
    assert read_error(http.get("/feedback"))[0] == 405
