"""Answers are sampled as the request says, else as the settings say, else as the base asks for."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from chatbot.api.openai.chat_request import ChatRequest
from chatbot.chat_settings import ChatSettings
from chatbot.engine.default_sampling import default_sampling
from chatbot.engine.protocol import Sampling
from chatbot.model.base import STARTER, Base, load_base
from chatbot.question import RETRY_TEMPERATURE, Question
from chatbot.service import Service
from feedback.settings import Home
from tests.fixtures import tiny_models
from tests.fixtures.server_process import SERVER_TOML
from tests.fixtures.turns import begin_turn

QWEN = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01}
"""What Qwen3's generation_config.json asks for, and some more."""
GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.write_model(tmp_path / "base", max_position_embeddings=8192)


def load(folder: Path, **generation: Any) -> Base:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return load_base(str(folder), weights=False)


@pytest.mark.parametrize(
    ("of_base", "expected"),
    [
        (QWEN, {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01}),
        ({"do_sample": True}, {**GREEDY, "temperature": 1.0}),
        ({"do_sample": True, "temperature": 0}, GREEDY),
        ({**QWEN, "do_sample": False}, GREEDY),
        ({"temperature": 0.6, "top_p": 0.9}, GREEDY),
        ({"repetition_penalty": 1.1}, {**GREEDY, "repetition_penalty": 1.1}),
        ({}, GREEDY),
    ],
)
def test_the_base_says_how_it_is_sampled(
    folder: Path, of_base: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = default_sampling(ChatSettings(), load(folder, **of_base), 4096)
    assert asdict(found).items() >= expected.items()


def test_what_the_operator_sets_wins_each_alone(folder: Path) -> None:
    chat = ChatSettings(temperature=0, repetition_penalty=1.2, max_tokens=99)
    found = default_sampling(chat, load(folder, **QWEN), 4096)
    expected = {**QWEN, "temperature": 0.0, "repetition_penalty": 1.2, "max_tokens": 99}
    del expected["do_sample"]
    assert asdict(found).items() >= expected.items()


@pytest.mark.parametrize(
    ("context", "limit"), [(512, 256), (1024, 256), (4096, 1024), (32768, 2048)]
)
def test_an_answers_length_follows_from_the_context(folder: Path, context: int, limit: int) -> None:
    assert default_sampling(ChatSettings(), load(folder), context).max_tokens == limit


def test_the_starter_answers_as_it_always_did() -> None:
    base = load_base(STARTER, weights=False)
    context = base.model.config.max_position_embeddings
    assert default_sampling(ChatSettings(), base, context) == Sampling(max_tokens=256)


def test_a_value_that_cannot_be_is_passed_over_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load(folder, **QWEN)
    assert base.model.generation_config is not None
    base.model.generation_config.top_p = 7.5
    with caplog.at_level(logging.WARNING):
        assert default_sampling(ChatSettings(), base, 4096).top_p == 1.0
    assert "top_p of" in caplog.text and "7.5" in caplog.text


def test_a_requests_own_values_win_and_the_rest_is_the_default() -> None:
    defaults = Sampling(max_tokens=700, temperature=0.6, top_k=20, top_p=0.95, min_p=0.01)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
    assert ChatRequest.model_validate(body).sampling(defaults) == defaults
    own = ChatRequest.model_validate({**body, "temperature": 0, "top_k": 0, "max_tokens": 5})
    assert own.sampling(defaults) == Sampling(max_tokens=5, top_p=0.95, min_p=0.01)


def test_every_answer_records_the_sampling_that_it_was_given(folder: Path, home: Home) -> None:
    load(folder, **QWEN)
    home.toml.write_text(SERVER_TOML.replace("max_tokens = 256", "max_tokens = 8"))
    service = Service.open(home, str(folder))
    turn = begin_turn(service, Question("Hello", "ann"))
    assert "".join(turn)
    wanted = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "max_tokens": 8}
    recorded = service.store.speaker(turn.message_id)
    assert recorded is not None and recorded.sampling.items() >= wanted.items()
    assert recorded.sampling["seed"] is not None and recorded.house
    again = begin_turn(service, Question("", "ann", retry_of=turn.message_id))
    assert "".join(again)
    assert again.speaker.sampling["temperature"] == RETRY_TEMPERATURE
    assert again.speaker.sampling["top_k"] == 20
    service.close()
