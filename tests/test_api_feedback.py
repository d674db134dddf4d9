"""Tests POST /v1/feedback over real HTTP."""

import json
from typing import Any

import httpx
import pytest

from chatbot.model.base import end_token_ids
from chatbot.service import Service
from tests.fixtures.api_client import MESSAGES, post_completion, read_error
from tests.fixtures.waiting import wait_until


@pytest.fixture(scope="module")
def service(api_service: Service) -> Service:
    """Return one service for all tests of this module: none depends on what others have stored."""
    return api_service


class TestFeedback:
    """Tests feedback, which names an answer by its id."""

    @pytest.mark.parametrize(
        ("fields", "value"),
        [
            ({"kind": "thumb", "up": False, "reasons": ["wrong"]}, None),
            ({"kind": "thumb", "value": {"up": True}}, {"up": True}),
            ({"kind": "edit", "text": "Yes, a few."}, {"text": "Yes, a few."}),
            ({"kind": "comment", "text": "Hm."}, {"text": "Hm."}),
            ({"kind": "signal", "name": "copy"}, {"name": "copy"}),
        ],
    )
    def test_every_kind_is_kept(
        self, http: httpx.Client, service: Service, fields: dict[str, Any], value: Any
    ) -> None:
        id = post_completion(http, user="ann").json()["id"]
        answer = http.post("/v1/feedback", json={"message_id": id, **fields})
        assert answer.status_code == 200
        (stored,) = service.store.feedback_on(id)
        assert answer.json() == {"feedback_id": stored.id} and stored.person == "ann"
        assert stored.value == (value or {"up": False, "reasons": ["wrong"]})

    def test_a_choice_is_between_two_answers_to_one_question(
        self, http: httpx.Client, service: Service
    ) -> None:
        first = post_completion(http).json()["id"]
        question = service.store.message(first)
        second = service.store.add_message(
            question.conversation_id, question.parent_id, "assistant", "Other"
        )
        chosen = {"message_id": second, "kind": "choice", "over": first, "user": "bob"}
        assert http.post("/v1/feedback", json=chosen).status_code == 200
        alone = {"message_id": second, "kind": "choice", "over": second}
        assert read_error(http.post("/v1/feedback", json=alone))[0] == 400

    def test_the_same_key_twice_is_kept_once(self, http: httpx.Client, service: Service) -> None:
        id = post_completion(http).json()["id"]
        body = {"message_id": id, "kind": "thumb", "up": True, "idempotency_key": "k-1"}
        first, second = (http.post("/v1/feedback", json=body).json() for _ in range(2))
        assert first == second and len(service.store.feedback_on(id)) == 1

    @pytest.mark.parametrize("other", [{"up": False}, {"up": True, "reasons": []}])
    def test_the_same_key_with_other_content_is_a_conflict(
        self, http: httpx.Client, service: Service, other: dict[str, Any]
    ) -> None:
        id = post_completion(http).json()["id"]
        key = {"idempotency_key": f"k-{id}"}
        fields = {"message_id": id, "kind": "thumb", "value": {"up": True}, **key}
        assert http.post("/v1/feedback", json=fields).status_code == 200
        status, error = read_error(http.post("/v1/feedback", json={**fields, "value": other}))
        assert (status, error["param"]) == (409, "idempotency_key")
        assert len(service.store.feedback_on(id)) == 1

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"kind": "shout", "text": "x"}, 400),
            ({"kind": "thumb", "up": "yes"}, 400),
            ({"kind": "edit"}, 400),
            ({"text": "no kind"}, 400),
            ({"kind": "thumb", "up": True, "message_id": "msg-none"}, 404),
        ],
    )
    def test_nonsense_is_refused_and_not_kept(
        self, http: httpx.Client, service: Service, fields: dict[str, Any], status: int
    ) -> None:
        id = post_completion(http).json()["id"]
        assert read_error(http.post("/v1/feedback", json={"message_id": id, **fields}))[0] == status
        assert service.store.feedback_on(id) == []


@pytest.mark.parametrize("route", ["ours", "a choice", "TensorZero's", "an episode's"])
def test_feedback_on_an_answer_that_streams_is_taken_as_soon_as_it_has_ended(
    http: httpx.Client, service: Service, route: str
) -> None:
    bias = {str(token): -100 for token in end_token_ids(service.base)}  # so that it goes on
    body = {"messages": MESSAGES, "max_tokens": 3000, "stream": True, "n": 2, "logit_bias": bias}
    with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()  # kept, because to drop it closes the stream
        first = json.loads(next(lines).removeprefix("data: "))["id"]
        turn = service.open_turns[first]
        (other,) = turn.alternatives
        choice = {"message_id": other.message_id, "kind": "choice", "over": first}
        metric = {"metric_name": "thumb", "value": True}
        path, sent = {
            "ours": ("/v1/feedback", {"message_id": first, "kind": "thumb", "up": True}),
            "a choice": ("/v1/feedback", choice),
            "TensorZero's": ("/feedback", {"inference_id": first, **metric}),
            "an episode's": ("/feedback", {"episode_id": turn.conversation_id, **metric}),
        }[route]
        early = http.post(path, json=sent)
        assert read_error(early)[0] == 425 and early.headers["retry-after"] == "1"
    wait_until(lambda: service.store.has_message(first))
    wait_until(lambda: http.post(path, json=sent).status_code == 200)
