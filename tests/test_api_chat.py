"""Tests chat completions over real HTTP: OpenAI's client, plain HTTP, bad requests."""

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from chatbot.api.openai.chat_request import ChatRequest
from chatbot.model.base import end_token_ids
from chatbot.question import Question
from chatbot.service import Service
from feedback.messages import Message
from feedback.review.decisions import decide
from tests.fixtures.api_client import MESSAGES, post_completion, read_error, read_events
from tests.fixtures.tiny_models import write_adapter

SEEDS = itertools.count(1)


@pytest.fixture(scope="module")
def service(api_service: Service) -> Service:
    """Return one service for all tests of this module: none depends on what others have stored."""
    return api_service


def another_adapter(service: Service) -> str:
    """Register an adapter with weights that no other has; return its id."""
    folder = write_adapter(service.home.adapters, service.base, seed=next(SEEDS))
    return service.registry.register(folder)


class TestOpenAIClient:
    """Tests that OpenAI's client works unchanged."""

    def test_plain(self, client: openai.OpenAI, service: Service) -> None:
        answer = client.chat.completions.create(model="talkback", messages=MESSAGES, max_tokens=8)  # type: ignore[arg-type]
        stored = service.store.message(answer.id)
        assert answer.choices[0].message.content == stored.content != ""
        assert answer.model == f"talkback:{service.speaking}"
        speaker, usage = service.store.speaker(answer.id), answer.usage
        assert speaker is not None and usage is not None
        assert usage.completion_tokens == speaker.completion_tokens
        assert usage.prompt_tokens == speaker.prompt_tokens > 0
        reason = {"stop": "stop", "length": "length"}[speaker.finish]
        assert answer.choices[0].finish_reason == reason

    def test_stream(self, client: openai.OpenAI, service: Service) -> None:
        chunks = list(
            client.chat.completions.create(
                model="talkback",
                messages=MESSAGES,  # type: ignore[arg-type]
                max_tokens=16,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        (id,) = {chunk.id for chunk in chunks}
        quoted = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(quoted) == service.store.message(id).content != ""
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens > 0

    def test_models(self, client: openai.OpenAI, service: Service) -> None:
        listed = [model.id for model in client.models.list()]
        adapters = [f"talkback:{adapter}" for adapter in service.rollout.adapters()]
        assert listed == ["talkback", "talkback:base", *adapters] and adapters
        assert client.models.retrieve("talkback:base").id == "talkback:base"

    def test_errors_are_the_clients_own(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            client.chat.completions.create(model="gpt-9", messages=MESSAGES)  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError, match="tools is not supported"):
            client.chat.completions.create(
                model="talkback",
                messages=MESSAGES,  # type: ignore[arg-type]
                tools=[{"type": "function", "function": {"name": "f"}}],
            )

    def test_a_conversation_as_the_client_keeps_it(self, client: openai.OpenAI) -> None:
        messages: list[Any] = [{"role": "system", "content": "Be kind."}, *MESSAGES]
        first = client.chat.completions.create(model="talkback", messages=messages, max_tokens=8)
        reply = {"role": "assistant", "content": first.choices[0].message.content}
        more = [*messages, reply, {"role": "user", "content": "And on Sundays?"}]
        second = client.chat.completions.create(model="talkback", messages=more, max_tokens=8)
        assert first.usage is not None and second.usage is not None
        assert second.usage.prompt_tokens > first.usage.prompt_tokens + 8


def test_curl_gets_an_answer_with_the_smallest_request(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/chat/completions",
        content='{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}',
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 200 and answer.json()["object"] == "chat.completion"


def test_the_speaker_row_tells_all_of_the_request(http: httpx.Client, service: Service) -> None:
    parts = [{"type": "text", "text": "When do"}, {"type": "text", "text": "you open?"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    sampling = {"temperature": 0.5, "top_p": 0.8, "stop": "\n", "seed": 3}
    answer = post_completion(
        http, messages=messages, user="bob", max_completion_tokens=5, **sampling
    ).json()
    speaker = service.store.speaker(answer["id"])
    assert speaker is not None and speaker.system_prompt == "Be brief."
    rest = {"max_tokens": 5, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    expected = {**sampling, "stop": ["\n"], **rest}
    assert speaker.sampling.items() >= expected.items()
    conversation = service.store.conversation(answer["metadata"]["conversation_id"])
    assert conversation.person == "bob" and conversation.title == "When do you open?"
    assert speaker.base_revision == service.base.revision and speaker.total_ms is not None


def test_a_stored_conversation_goes_on(http: httpx.Client, service: Service) -> None:
    first = post_completion(http, user="ann").json()
    conversation = {"conversation_id": first["metadata"]["conversation_id"]}
    again = [{"role": "user", "content": "And on Sundays?"}]
    second = post_completion(http, user="ann", messages=again, metadata=conversation).json()
    thread = [message.id for message in service.store.thread(second["id"])]
    assert len(thread) == 4 and thread[1] == first["id"]
    assert second["metadata"]["conversation_id"] == conversation["conversation_id"]
    status, error = read_error(post_completion(http, user="bob", metadata=conversation))
    assert status == 403 and error["code"] == "forbidden"


def test_a_pinned_model_speaks_whoever_is_in_service(http: httpx.Client, service: Service) -> None:
    other = another_adapter(service)
    answer = post_completion(http, model=f"talkback:{other}").json()
    assert answer["model"] == f"talkback:{other}" != f"talkback:{service.speaking}"
    assert post_completion(http, model="talkback:base").json()["model"] == "talkback:base"
    assert post_completion(http).json()["choices"] != answer["choices"]


def test_a_promotion_changes_the_speaker_of_the_next_turn_and_no_running_stream(
    http: httpx.Client, service: Service
) -> None:
    old, new = service.speaking, another_adapter(service)
    text = post_completion(http, max_tokens=400).json()["choices"][0]["message"]["content"]
    body = {"messages": MESSAGES, "max_tokens": 400, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as running:
        lines = running.iter_lines()
        first = json.loads(next(lines).removeprefix("data: "))
        service.registry.promote(new, "person", "ann", "try")
        while service.speaking == old:
            time.sleep(0.01)
        assert post_completion(http).json()["model"] == f"talkback:{new}"
        rest = [json.loads(line.removeprefix("data: ")) for line in lines if line[6:7] == "{"]
    assert {chunk["model"] for chunk in [first, *rest]} == {f"talkback:{old}"}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in rest) == text
    speaker = service.store.speaker(first["id"])
    assert speaker is not None and speaker.adapter == old and speaker.finish in ("stop", "length")


def test_an_approved_answer_streams_like_any_other(http: httpx.Client, service: Service) -> None:
    messages = [{"role": "user", "content": "Do you sell kayaks in winter?"}]
    wrong = post_completion(http, messages=messages).json()
    decide(service.store, wrong["id"], "rita", "correct", "Yes, a few.")
    right = post_completion(http, messages=messages, stream=True)
    chunks = read_events(right)
    assert chunks[0]["metadata"]["source"] == "approved"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "Yes, a few."
    unaided = post_completion(http, messages=messages, metadata={"unaided": "true"}).json()
    assert unaided["metadata"]["source"] == "model"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_and_what_it_got_is_kept(
    http: httpx.Client, service: Service, stream: bool
) -> None:
    person = f"gone-{stream}"
    body = {
        "messages": MESSAGES,
        "max_tokens": 4000,
        "stream": stream,
        "user": person,
        "logit_bias": {str(token): -100 for token in end_token_ids(service.base)},
    }
    if stream:
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            got = "".join(itertools.islice(response.iter_lines(), 9))
    else:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body, timeout=0.5)
        got = ""
    answer = answer_to(service, person)
    speaker = service.store.speaker(answer.id)
    assert speaker is not None and speaker.finish == "cancelled" and answer.content
    assert answer.id in got or not stream
    assert service.engine.stats()["running"] == 0


def answer_to(service: Service, person: str) -> Message:
    """Wait for the only answer that this person got to be stored, and return it."""
    for _ in range(500):
        for conversation in service.store.conversations(person):
            answer = service.store.latest_message(conversation.id)
            if answer is not None and answer.role == "assistant":
                return answer
        time.sleep(0.02)
    pytest.fail(f"{person} got no answer")


def test_many_clients_stream_at_once(http: httpx.Client, service: Service) -> None:
    def stream(number: int) -> str:
        messages = [{"role": "user", "content": f"Question {number}"}]
        chunks = read_events(post_completion(http, messages=messages, stream=True, max_tokens=24))
        return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(stream, range(8)))
    alone = [stream(number) for number in range(8)]
    assert answers == alone and service.engine.stats()["running"] == 0


def test_a_full_house_says_when_to_come_again(http: httpx.Client, service: Service) -> None:
    from tests.fixtures.turns import begin_turn

    long = ChatRequest.model_validate({"messages": MESSAGES, "max_tokens": 4000})
    turns = [
        begin_turn(service, Question("Go", "ann", sampling=long.sampling(service.default_sampling)))
        for _ in range(8)
    ]
    answer = post_completion(http)
    for turn in turns:
        turn.close()
    status, error = read_error(answer)
    assert (status, error["type"]) == (429, "rate_limit_error")
    assert int(answer.headers["retry-after"]) >= 1
    assert post_completion(http).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "quoted"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"n": 9}, "n", "8"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "99999"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "100"),
        ({"presence_penalty": 2.1}, "presence_penalty", "2"),
        ({"metadata": {"parent_message_id": "msg-1"}}, "metadata", "conversation_id"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hello"}, "messages", "list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "'user'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "user's"),
        ({"messages": [{"role": "user", "content": " "}]}, None, "nothing to answer"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, "messages", "tokens"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages",
            "image_url",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    http: httpx.Client, service: Service, fields: dict[str, Any], param: str | None, quoted: str
) -> None:
    before = service.store.counts()["messages"]
    status, error = read_error(post_completion(http, **fields))
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert quoted in error["message"]
    assert service.store.counts()["messages"] == before


def test_fields_that_ask_for_nothing_are_let_pass(http: httpx.Client) -> None:
    nothing = {"n": 1, "tools": None, "tool_choice": "none", "logit_bias": {}, "logprobs": False}
    harmless = {"presence_penalty": 0, "frequency_penalty": 0.0, "store": False, "seed": None}
    assert (
        post_completion(http, **nothing, **harmless, stream=None, session="x-7").status_code == 200
    )


@pytest.mark.parametrize("name", ["talkback:a-nobody", "talkback:", "gpt-9", ""])
def test_an_unknown_model_is_not_found(http: httpx.Client, name: str) -> None:
    status, error = read_error(post_completion(http, model=name))
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")
    if name:
        assert read_error(http.get(f"/v1/models/{name}"))[0] == 404


def test_bodies_and_paths_that_make_no_sense_are_told_so(http: httpx.Client) -> None:
    for body in (b"", b"{", b"[]", b"\xff\xfe", b"null", b'"x"'):
        headers = {"content-type": "application/json"}
        answer = http.post("/v1/chat/completions", content=body, headers=headers)
        assert read_error(answer)[0] == 400
    assert read_error(http.get("/v1/nowhere"))[0] == 404
    wrong = http.get("/v1/feedback")
    assert read_error(wrong)[0] == 405 and wrong.headers["allow"] == "POST"
    form = http.post("/v1/chat/completions", data={"messages": "Hello"})
    assert "content-type: application/json" in read_error(form)[1]["message"]


def test_a_damaged_pinned_adapter_is_an_error_of_ours_and_others_go_on(
    http: httpx.Client, service: Service
) -> None:
    bad = another_adapter(service)
    (service.registry.folder(bad) / "adapter_model.safetensors").write_bytes(b"")
    status, error = read_error(post_completion(http, model=f"talkback:{bad}"))
    assert status == 503 and bad in error["message"]
    assert post_completion(http).status_code == 200
