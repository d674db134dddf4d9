"""Tests completions against OpenAI's documentation: `n`, log probabilities, sampling."""

import json
import math
import subprocess
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI

from chatbot.engine.protocol import Request, Sampling
from chatbot.service import Service
from feedback.db.well_formed import to_well_formed
from feedback.review.decisions import decide
from tests.fixtures.api_client import MESSAGES, post_completion, read_error, read_events


@pytest.fixture(scope="module")
def service(api_service: Service) -> Service:
    """Return one service for all tests of this module: none depends on what others have stored."""
    return api_service


class TestSeveralAnswers:
    """Tests `n` answers, which are siblings and generated together."""

    def test_plain(self, client: openai.OpenAI, service: Service) -> None:
        answer = client.chat.completions.create(
            model="talkback",
            messages=MESSAGES,
            n=3,
            max_tokens=12,
            temperature=1,
            seed=5,  # type: ignore[arg-type]
        )
        ids = [choice.message_id for choice in answer.choices]  # type: ignore[attr-defined]
        assert ids[0] == answer.id and [choice.index for choice in answer.choices] == [0, 1, 2]
        messages = [service.store.message(id) for id in ids]
        assert [m.content for m in messages] == [c.message.content for c in answer.choices]
        assert len({m.parent_id for m in messages}) == 1 and len({m.content for m in messages}) == 3
        speakers = [service.store.speaker(id) for id in ids]
        assert [speaker.sampling["seed"] for speaker in speakers if speaker] == [5, 6, 7]
        assert answer.usage is not None and speakers[0] is not None
        completion_tokens = sum(speaker.completion_tokens for speaker in speakers if speaker)
        assert answer.usage.completion_tokens == completion_tokens
        assert answer.usage.prompt_tokens == speakers[0].prompt_tokens

    def test_a_stream_tells_them_apart(self, http: httpx.Client, service: Service) -> None:
        chunks = read_events(
            post_completion(http, n=2, stream=True, temperature=1, seed=2, max_tokens=400)
        )
        texts, ids = {0: "", 1: ""}, {}
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            texts[choice["index"]] += choice["delta"].get("content", "")
            ids.setdefault(choice["index"], choice.get("message_id"))
        stored = {index: service.store.message(id).content for index, id in ids.items()}
        assert stored == texts and texts[0] != texts[1]
        turns = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"]]
        assert turns.index(1, 2) < len(turns) - 1 - turns[::-1].index(0) - 1, "one after the other"
        ends = [c["choices"][0]["finish_reason"] for c in chunks[-2:]]
        assert set(ends) <= {"stop", "length"}

    def test_greedy_answers_are_the_same(self, http: httpx.Client) -> None:
        texts = [c["message"]["content"] for c in post_completion(http, n=2).json()["choices"]]
        assert texts[0] == texts[1]

    def test_too_many_for_the_house_are_refused_whole(
        self, http: httpx.Client, service: Service
    ) -> None:
        before = service.store.counts()["messages"]
        taken = service.engine.submit(Request([5], sampling=Sampling(max_tokens=4000)))
        status, _ = read_error(post_completion(http, n=8, max_tokens=50, temperature=1))
        taken.cancel()
        taken.wait()
        assert status == 429 and service.store.counts()["messages"] == before
        assert post_completion(http, n=8, max_tokens=1).status_code == 200

    def test_the_conversation_goes_on_after_the_one_that_is_named(
        self, http: httpx.Client, service: Service
    ) -> None:
        first = post_completion(http, n=2, temperature=1).json()
        conversation_id = first["metadata"]["conversation_id"]
        for choice in first["choices"]:
            where = {"conversation_id": conversation_id, "parent_message_id": choice["message_id"]}
            after = post_completion(http, metadata=where).json()
            assert service.store.thread(after["id"])[1].id == choice["message_id"]

    def test_a_choice_is_between_them(self, http: httpx.Client) -> None:
        one, two = (
            c["message_id"] for c in post_completion(http, n=2, temperature=1).json()["choices"]
        )
        chosen = {"message_id": two, "kind": "choice", "over": one}
        assert http.post("/v1/feedback", json=chosen).status_code == 200

    def test_an_approved_answer_is_all_of_them(self, http: httpx.Client, service: Service) -> None:
        messages = [{"role": "user", "content": "Do you sell sledges in summer?"}]
        decide(
            service.store,
            post_completion(http, messages=messages).json()["id"],
            "rita",
            "correct",
            "No.",
        )
        answer = post_completion(http, messages=messages, n=2, logprobs=True).json()
        assert [c["message"]["content"] for c in answer["choices"]] == ["No.", "No."]
        assert [c["logprobs"] for c in answer["choices"]] == [None, None]


class TestLogprobs:
    """Tests the tokens' log probabilities in OpenAI's shape."""

    def test_plain(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model="talkback",
            messages=MESSAGES,
            max_tokens=16,
            logprobs=True,
            top_logprobs=3,  # type: ignore[arg-type]
        )
        choice = answer.choices[0]
        assert choice.logprobs is not None and choice.logprobs.content is not None
        spoken = bytes(byte for token in choice.logprobs.content for byte in token.bytes or [])
        assert to_well_formed(spoken.decode(errors="replace")) == choice.message.content
        for token in choice.logprobs.content:
            best = token.top_logprobs[0]
            assert (token.token, token.logprob) == (best.token, best.logprob), "greedy is the best"
            assert len(token.top_logprobs) == 3 and token.logprob < 0
            falling = [top.logprob for top in token.top_logprobs]
            assert falling == sorted(falling, reverse=True) and sum(map(math.exp, falling)) <= 1

    def test_a_stream_tells_the_same(self, http: httpx.Client) -> None:
        fields = {"logprobs": True, "top_logprobs": 1, "max_tokens": 24, "n": 2}
        whole = post_completion(http, **fields).json()["choices"]
        streamed: dict[int, list[Any]] = {0: [], 1: []}
        for chunk in read_events(post_completion(http, **fields, stream=True)):
            choice = chunk["choices"][0]
            entries = (choice["logprobs"] or {"content": []})["content"]
            streamed[choice["index"]] += entries
            spoken = bytes(byte for entry in entries for byte in entry["bytes"])
            assert to_well_formed(spoken.decode(errors="replace")) == choice["delta"].get(
                "content", ""
            )
        assert list(streamed.values()) == [c["logprobs"]["content"] for c in whole] and whole

    def test_the_answer_is_the_same_as_without(self, http: httpx.Client) -> None:
        for fields in ({}, {"temperature": 1, "seed": 4}):
            with_logprobs, without = (
                post_completion(http, **fields, logprobs=asked).json() for asked in (True, False)
            )
            assert with_logprobs["choices"][0]["message"] == without["choices"][0]["message"]
            assert without["choices"][0]["logprobs"] is None
            assert with_logprobs["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


class TestSampling:
    """Tests sampling parameters against OpenAI's documentation."""

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_stop_sequence_ends_the_answer_before_itself(
        self, http: httpx.Client, stream: bool
    ) -> None:
        whole = spoken(http, stream, max_tokens=24)[0]
        stop = whole[5:9]
        text, reason, usage = spoken(http, stream, max_tokens=24, stop=["never", stop])
        assert text == whole[: whole.index(stop)] and reason == "stop"
        assert 0 < usage["completion_tokens"] < 24

    def test_the_seed_repeats_the_dice(self, http: httpx.Client) -> None:
        output = [
            spoken(http, False, temperature=1, seed=seed, max_tokens=16)[0] for seed in (1, 1, 2)
        ]
        assert output[0] == output[1] != output[2]

    @pytest.mark.parametrize("stream", [False, True])
    def test_max_completion_tokens_goes_before_max_tokens(
        self, http: httpx.Client, stream: bool
    ) -> None:
        _, reason, usage = spoken(http, stream, max_completion_tokens=3, max_tokens=9)
        assert (reason, usage["completion_tokens"]) == ("length", 3)

    def test_a_bias_forces_a_word(self, http: httpx.Client, service: Service) -> None:
        (token,) = service.base.tokenizer.encode("x")
        assert spoken(http, False, logit_bias={str(token): 100}, max_tokens=4)[0] == "xxxx"

    def test_penalties_hold_against_what_came_before(
        self, http: httpx.Client, service: Service
    ) -> None:
        (token,) = service.base.tokenizer.encode("x")
        stuck = {"logit_bias": {str(token): 100}, "max_tokens": 60}
        assert spoken(http, False, **stuck)[0] == "x" * 60
        freed = spoken(http, False, **stuck, frequency_penalty=2)[0]
        assert freed.startswith("xxxx") and freed != "x" * 60, "50 times 2 outweigh the bias"
        assert spoken(http, False, **stuck, presence_penalty=2)[0] == "x" * 60, "counts once"


class TestLangChain:
    """Tests that LangChain's ChatOpenAI works unchanged."""

    @pytest.fixture
    def chat(self, address: str) -> ChatOpenAI:
        return ChatOpenAI(
            base_url=f"{address}/v1",
            api_key="any",
            model="talkback",
            temperature=0,
            max_completion_tokens=12,
            max_retries=0,
            stream_usage=True,
        )

    def test_plain(self, chat: ChatOpenAI, service: Service) -> None:
        answer = chat.invoke([("system", "Be kind."), ("user", "When do you open?")])
        stored = service.store.message(answer.response_metadata["id"])
        assert answer.content == stored.content != ""
        assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0

    def test_stream(self, chat: ChatOpenAI) -> None:
        chunks = list(chat.stream("When do you open?"))
        whole = chat.invoke("When do you open?").content
        assert "".join(str(chunk.content) for chunk in chunks) == whole
        usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        assert len(usages) == 1 and usages[0]["output_tokens"] > 0

    def test_logprobs_and_errors(self, chat: ChatOpenAI) -> None:
        answer = chat.bind(logprobs=True, top_logprobs=2).invoke("When do you open?")
        assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
        with pytest.raises(openai.BadRequestError, match="tools is not supported"):
            chat.bind(tools=[{"type": "function", "function": {"name": "f"}}]).invoke("Hello")


def test_curl_streams(address: str) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 12, "stream": True})
    command = ["curl", "-sSN", f"{address}/v1/chat/completions", "-d", body]
    headers = ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer any"]
    output = subprocess.run([*command, *headers], capture_output=True, check=True, text=True).stdout
    *lines, end = output.strip().split("\n\n")
    assert end == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def spoken(http: httpx.Client, stream: bool, **fields: Any) -> tuple[str, str, dict[str, int]]:
    """Return text, finish reason and usage of an answer, streamed or not."""
    if not stream:
        answer = post_completion(http, **fields).json()
        choice = answer["choices"][0]
        return choice["message"]["content"], choice["finish_reason"], answer["usage"]
    *chunks, last = read_events(
        post_completion(http, **fields, stream=True, stream_options={"include_usage": True})
    )
    assert last["choices"] == [] and all(chunk["usage"] is None for chunk in chunks)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    return text, chunks[-1]["choices"][0]["finish_reason"], last["usage"]
