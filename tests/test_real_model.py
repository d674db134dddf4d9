"""Serves a real pretrained model, SmolLM2-135M-Instruct: by fast paths, none of them refused."""

from pathlib import Path

import pytest

from chatbot.engine.local.kernels.library import kernel_library
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.protocol import Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.model.base import load_base
from chatbot.model.chat_template import encode

QUESTIONS = {"Who wrote Romeo and Juliet?": "Shakespeare", "What is 2 + 3?": "5"}


@pytest.mark.parametrize("kind", ["torch", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_real_model_is_served_by_the_fastest_path_and_answers_right(
    real_model: Path, kind: str
) -> None:
    base = load_base(str(real_model))
    engine = LocalEngine(base, EngineSettings.model_validate({"kind": kind, "threads": 1}))
    streams = [
        engine.submit(
            Request(
                encode(base.tokenizer, [{"role": "user", "content": question}]),
                sampling=Sampling(max_tokens=40),
            )
        )
        for question in QUESTIONS
    ]
    answers = ["".join(stream) for stream in streams]
    stats = engine.stats()
    engine.close()
    assert all(stream.finish in ("stop", "length") for stream in streams)
    for answer, expected in zip(answers, QUESTIONS.values(), strict=True):
        assert expected in answer and "<|" not in answer
    if kernel_library() is None:
        assert stats["runner"] == "llama_torch"
    else:
        assert stats["runner"] == ("int8" if kind == "int8" else "llama_cpu")
        assert stats["notes"] == []
