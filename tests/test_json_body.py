"""Tests what the API makes of bodies that hold what no text can hold, over real HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chatbot.api.errors import ApiError
from chatbot.api.json_body import MAX_DEPTH, clean_json
from chatbot.server import ServerSettings, create_api
from chatbot.service import Service
from tests.fixtures.api_client import MESSAGES, read_error
from tests.fixtures.http_server import serve_app


@pytest.mark.parametrize(
    "body",
    [
        rb'{"a": "x\ud83d"}',
        rb'{"a": "x\uDE00"}',
        rb'{"a": "x\u0000"}',
        b'{"a": "x\xed\xa0\xbd"}',
        json.dumps({"a": "x\ud83d"}, ensure_ascii=False).encode("utf-16", "surrogatepass"),
        json.dumps({"a": "x\0"}).encode("utf-32"),
    ],
)
def test_half_a_character_and_nul_are_replaced_however_they_are_written(body: bytes) -> None:
    assert json.loads(clean_json(body)) == {"a": "x\ufffd"}


@pytest.mark.parametrize(
    "body", [b'{"a":  "\xc3\xa4 \\ud83d\\ude00"}', b"", b"\x00\x01", b'{"a": "\\u0000', b"a=b"]
)
def test_a_body_with_nothing_to_replace_means_the_same(body: bytes) -> None:
    cleaned = clean_json(body)
    assert cleaned == body or json.loads(cleaned) == json.loads(body)


@pytest.mark.parametrize("nested", ["[" * 200 + "]" * 200, '{"a":' * 101 + "1" + "}" * 101])
def test_a_body_that_is_too_deep_is_refused(nested: str) -> None:
    with pytest.raises(ApiError, match="nested more than 100"):
        clean_json(nested.encode())
    with pytest.raises(ApiError, match="nested more than 100"):
        clean_json(b"[" * 100_000)
    flat = json.dumps([[]] * 1000).encode()
    assert clean_json(flat) == flat
    allowed = ("[" * MAX_DEPTH + "]" * MAX_DEPTH).encode()
    assert clean_json(allowed) == allowed


@pytest.fixture(scope="module")
def guarded(api_service: Service) -> Iterator[httpx.Client]:
    """Open a client of the API behind its guards, which take up to 3 MB."""
    app = create_api(api_service, ServerSettings(max_request_bytes=3_000_000))
    with serve_app(app) as address, httpx.Client(base_url=address, timeout=60) as http:
        yield http


def post(http: httpx.Client, path: str, body: Any) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return http.post(path, content=json.dumps(body), headers=headers)


@pytest.mark.parametrize("bad", ["\ud83d", "\ude00", "\0"])
def test_a_question_with_half_a_character_is_answered_and_stored(
    guarded: httpx.Client, api_service: Service, bad: str
) -> None:
    body = {"messages": [{"role": "user", "content": f"Open{bad}?"}], "max_tokens": 4}
    answer = post(guarded, "/v1/chat/completions", body)
    assert answer.status_code == 200
    question = api_service.store.thread(answer.json()["id"])[-2]
    assert question.content == "Open\ufffd?"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "ann\ud83d"),
        ("user", "x" * 1_000_000),
        ("model", "talkback\0"),
        ("model", "x" * 1_000_000),
        ("metadata", {"conversation_id": "x" * 1_000_000}),
        ("metadata", {"x" * 1_000_000: "y"}),
        ("user", ["ann"]),
    ],
)
def test_names_are_whole_and_short_or_refused_by_name(
    guarded: httpx.Client, field: str, value: Any
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 4, field: value}
    status, error = read_error(post(guarded, "/v1/chat/completions", body))
    assert (status, error["param"]) == (400, field) and len(error["message"]) < 3000


@pytest.mark.parametrize("field", ["message_id", "user", "idempotency_key"])
@pytest.mark.parametrize("value", ["half\ud83d", "nul\0", "x" * 1_000_000, 7, {}])
def test_feedback_names_are_whole_and_short_or_refused_by_name(
    guarded: httpx.Client, field: str, value: Any
) -> None:
    body = {"message_id": "msg-1", "kind": "thumb", "up": True, field: value}
    assert read_error(post(guarded, "/v1/feedback", body))[1]["param"] == field


def test_a_nul_in_a_path_is_not_found(guarded: httpx.Client) -> None:
    assert read_error(guarded.get("/v1/models/talkback%00"))[0] == 404
    assert read_error(guarded.get("/v1/models/%ED%A0%BD"))[0] == 404
