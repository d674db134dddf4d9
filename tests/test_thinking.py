"""A base that thinks does so within its budget, and always answers."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chatbot.chat_settings import ChatSettings
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.model.base import Base, load_base
from chatbot.model.chat_template import encode
from chatbot.service import Service
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.api_client import post_completion, read_error, read_events, serve_api
from tests.fixtures.thinking_base import script_tokens, write_thinking_base

QUESTION = [{"role": "user", "content": "When do you open?"}]
END = "<|im_end|>"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(write_thinking_base(tmp_path_factory.mktemp("thinking"))))


@pytest.fixture(scope="module")
def engine(base: Base) -> Iterator[LocalEngine]:
    engine = LocalEngine(base, EngineSettings(threads=1, slots=2))
    yield engine
    engine.close()


def tokens(base: Base, text: str) -> list[int]:
    return list(base.tokenizer(text, add_special_tokens=False)["input_ids"])


def answer(engine: LocalEngine, sampling: Sampling, prompt_ids: list[int] | None = None) -> Stream:
    ids = prompt_ids or encode(engine.base.tokenizer, QUESTION, thinking=sampling.thinking > 0)
    stream = engine.submit(Request(ids, BASE, sampling))
    assert stream.wait(60) and not stream.error
    assert engine.base.tokenizer.decode(stream.ids).count("</think>") <= 1
    return stream


@pytest.mark.parametrize("lookup", ["", "<think>\nWe open", "\n</think>\n\nAt"])
def test_a_thought_is_no_part_of_the_answer(
    base: Base, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, lookup: str
) -> None:
    """Drafts that continue what the prompt says of thoughts change nothing."""
    thought = tokens(base, "<think>\nWe open 🙂\n</think>\n\n")
    script = [*thought, *tokens(base, "At ten."), *tokens(base, END)]
    script_tokens(monkeypatch, script)
    prompt = encode(base.tokenizer, [{"role": "user", "content": f"{lookup} ten."}], thinking=True)
    sampling = Sampling(max_tokens=20, thinking=60, logprobs=1, stop=("We", "\n"))
    stream = answer(engine, sampling, prompt)
    assert (stream.thought, stream.text, stream.finish) == ("We open 🙂", "At ten.", "stop")
    assert stream.ids == script and stream.thought_tokens == len(thought)
    assert [one.token for one in stream.logprobs] == script
    assert stream.thought_ms is not None and stream.thought_ms <= (stream.total_ms or 0)


@pytest.mark.parametrize("budget", [12, 13, 20])
def test_a_thought_that_its_budget_cuts_gets_an_answer_of_full_length(
    base: Base, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    endless = tokens(base, "<think>\nHm, " + "so " * 30)
    script_tokens(monkeypatch, endless)
    stream = answer(engine, Sampling(max_tokens=9, thinking=budget))
    closing = tokens(base, "\n</think>\n\n")
    assert stream.ids[budget : budget + len(closing)] == closing
    assert stream.thought_tokens == budget + len(closing)
    assert len(stream.ids) == stream.thought_tokens + 9 and stream.finish == "length"
    assert stream.thought.startswith("Hm, so") and "think>" not in stream.thought


def test_an_end_of_turn_inside_a_thought_ends_the_thought_alone(
    base: Base, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [tokens(base, part) for part in ("<think>\nHm", END, "At ten.", END)]
    script_tokens(monkeypatch, [token for part in parts for token in part])
    stream = answer(engine, Sampling(max_tokens=20, thinking=60))
    assert (stream.thought, stream.text, stream.finish) == ("Hm", "At ten.", "stop")


@pytest.mark.parametrize("thinking", [0, 60])
def test_an_answer_without_a_thought_is_all_answer(
    base: Base, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, thinking: int
) -> None:
    script_tokens(monkeypatch, [*tokens(base, "<thin ice>, so no."), *tokens(base, END)])
    stream = answer(engine, Sampling(max_tokens=30, thinking=thinking))
    assert (stream.thought, stream.text, stream.thought_tokens) == ("", "<thin ice>, so no.", 0)


def test_with_thinking_off_a_thought_is_ended_where_it_begins(
    base: Base, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_tokens(monkeypatch, tokens(base, "<think>At ten." + END))
    stream = answer(engine, Sampling(max_tokens=30))
    assert (stream.thought, stream.text, stream.finish) == ("", "At ten.", "stop")


def test_the_context_leaves_room_for_the_answer(base: Base, engine: LocalEngine) -> None:
    room = 40
    prompt = [5, 6] * ((engine.max_length - room) // 2)
    stream = answer(engine, Sampling(max_tokens=999, thinking=999), [*prompt, *tokens(base, "a")])
    assert len(stream.ids) <= room


def test_the_next_turn_reuses_what_the_thought_has_computed(
    base: Base, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_tokens(monkeypatch, tokens(base, "<think>\nHm, so, hm"))
    prompt = [*tokens(base, "Something else"), 7, 8]
    first = answer(engine, Sampling(max_tokens=5, thinking=12), prompt)
    recalled = engine.stats()["recalled"]
    monkeypatch.undo()
    again = [*prompt, *first.ids, *tokens(base, "More?")]
    second = answer(engine, Sampling(max_tokens=8), again)
    assert engine.stats()["recalled"] - recalled == len(prompt) + len(first.ids) - 1
    fresh = LocalEngine(load_base(base.name), EngineSettings(threads=1, prefix_mb=0))
    assert answer(fresh, Sampling(max_tokens=8), again).ids == second.ids
    fresh.close()


# -- Over HTTP


@pytest.fixture(scope="module")
def http(
    tmp_path_factory: pytest.TempPathFactory, base: Base, engine: LocalEngine
) -> Iterator[httpx.Client]:
    """Serve the API over the engine of this module."""
    home = Home.find(tmp_path_factory.mktemp("thinking-home"))
    chat = ChatSettings(max_tokens=24)
    service = Service(
        home, Store(home.db), base, engine, chat_settings=chat, context_length=engine.max_length
    )
    with serve_api(service) as address, httpx.Client(base_url=address, timeout=60) as http:
        yield http
    service.rollout.close()
    service.store.close()


SCRIPT = "<think>\nWe open\n</think>\n\nAt ten." + END


@pytest.mark.parametrize(
    "asked",
    [{"chat_template_kwargs": {"enable_thinking": True}}, {"reasoning_effort": "minimal"}],
)
def test_a_thought_is_reasoning_content(
    base: Base, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    script_tokens(monkeypatch, tokens(base, SCRIPT))
    asked = {"max_tokens": 24, "logprobs": True, **asked}
    whole = post_completion(http, **asked).json()
    (choice,), usage = whole["choices"], whole["usage"]
    assert choice["message"]["content"] == "At ten."
    assert choice["message"]["reasoning_content"] == "We open"
    assert "".join(one["token"] for one in choice["logprobs"]["content"]) == "At ten."
    thought = len(tokens(base, SCRIPT.removesuffix("At ten." + END)))
    assert usage["completion_tokens_details"] == {"reasoning_tokens": thought}
    assert usage["completion_tokens"] == len(tokens(base, SCRIPT))

    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = read_events(post_completion(http, **options, **asked))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "We open"
    assert "".join(delta.get("content", "") for delta in deltas) == "At ten."
    kinds = [key for delta in deltas for key in delta if key != "role" and delta[key]]
    assert kinds == sorted(kinds, reverse=True), "all of the thought comes before the answer"
    logprobs = [c["choices"][0]["logprobs"] for c in chunks if c["choices"]]
    reported = [one["token"] for part in logprobs if part for one in part["content"]]
    assert "".join(reported) == "At ten."
    assert chunks[-1]["usage"] == usage


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_with_thinking_off_the_prompt_has_an_empty_thought(
    base: Base, http: httpx.Client, asked: dict[str, Any]
) -> None:
    whole = post_completion(http, **asked).json()
    prompt = encode(base.tokenizer, QUESTION)
    assert base.tokenizer.decode(prompt).endswith("<think>\n\n</think>\n\n")
    assert whole["usage"]["prompt_tokens"] == len(prompt)
    assert "reasoning_content" not in whole["choices"][0]["message"]
    assert "completion_tokens_details" not in whole["usage"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "enable_thinking"),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs"),
    ],
)
def test_a_wish_that_nobody_knows_is_refused(
    http: httpx.Client, asked: dict[str, Any], named: str
) -> None:
    status, error = read_error(post_completion(http, **asked))
    assert status == 400 and named in error["message"]


@pytest.mark.parametrize(("value", "most"), [("off", 0), ("on", 2048), (300, 300), ("300", 300)])
def test_the_setting_is_off_on_or_a_budget(value: object, most: int) -> None:
    assert ChatSettings(thinking=value).max_thinking == most  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, False, 0, -1, "yes", 1.5])
def test_another_setting_is_refused_with_the_remedy(value: object) -> None:
    with pytest.raises(ValueError, match='write "off", "on" or the most tokens'):
        ChatSettings(thinking=value)  # type: ignore[arg-type]
