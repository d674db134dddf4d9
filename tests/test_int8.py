"""Eight-bit weights: nearly the same answers, and the exact weights where they are not."""

import pytest
import torch

from chatbot.engine import BASE
from chatbot.inprocess.batching import EngineSettings, TorchEngine
from chatbot.inprocess.product import Int8
from tests.oracle import QUESTIONS, Oracle
from tests.streams import finish


def start_int8(oracle: Oracle) -> TorchEngine:
    engine = TorchEngine(oracle.base, EngineSettings(threads=1, kind="int8"))
    for name, folder in oracle.adapters.items():
        engine.load(name, folder)
    return engine


def test_eight_bits_say_nearly_the_same_and_take_a_byte_a_weight_more(oracle: Oracle) -> None:
    model = oracle.base.model
    linears = [each.weight for each in model.modules() if isinstance(each, torch.nn.Linear)]
    own, more = sum(p.nbytes for p in model.parameters()), sum(p.numel() for p in linears)
    engine = start_int8(oracle)
    assert engine.stats()["int8"]
    assert engine.stats()["memory"]["weights"] == own + more
    asked = [(question, voice) for question in QUESTIONS for voice in oracle.voices]
    streams = [engine.submit(oracle.request(question, voice, 8)) for question, voice in asked]
    for stream in streams:
        finish(stream)
    expected = [oracle.answer(question, voice, 8) for question, voice in asked]
    same = sum(stream.ids[:1] == ids[:1] for stream, ids in zip(streams, expected, strict=True))
    assert same >= 0.8 * len(asked)
    engine.close()


def test_alone_and_in_company_eight_bits_give_the_same(oracle: Oracle) -> None:
    weight = torch.randn(24, 16)
    rows = torch.randn(5, 16) * torch.tensor([1e-3, 1.0, 1e3, 1.0, float("nan")])[:, None]
    product = Int8(weight)
    together = product(rows)
    assert together[4].isnan().all(), "a row that is no number spoils no other"
    for row, result in zip(rows[:4], together[:4], strict=True):
        exact = weight @ row
        assert (product(row[None])[0] - exact).norm() < 0.03 * exact.norm()
        assert (result - exact).norm() < 0.03 * exact.norm()


def test_eight_bits_that_lie_too_far_off_are_refused(
    oracle: Oracle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.inprocess.product.WIDEST", 3)  # two bits and a sign
    with caplog.at_level("WARNING"):
        engine = start_int8(oracle)
    assert "int8 is off: with the base" in caplog.text
    assert engine.stats()["fast"] and not engine.stats()["int8"]
    same_as_oracle(engine, oracle)


def test_an_adapter_that_eight_bits_get_wrong_brings_the_exact_weights_back(
    oracle: Oracle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(oracle.base, EngineSettings(threads=1, kind="int8"))
    name, folder = next(iter(oracle.adapters.items()))
    running = engine.submit(oracle.request(QUESTIONS[0], BASE, 200))
    with monkeypatch.context() as strict, caplog.at_level("WARNING"):
        strict.setattr("chatbot.inprocess.probe.INT8", 1e-6)
        engine.load(name, folder)
    assert f"int8 is off: with {name}" in caplog.text and not engine.stats()["int8"]
    finish(running)
    for other, place in oracle.adapters.items():
        engine.load(other, place)
    same_as_oracle(engine, oracle)


def same_as_oracle(engine: TorchEngine, oracle: Oracle) -> None:
    for voice in oracle.voices:
        stream = engine.submit(oracle.request(QUESTIONS[0], voice))
        finish(stream)
        assert stream.ids == oracle.answer(QUESTIONS[0], voice)
    engine.close()


def test_where_there_are_no_kernels_or_no_path_the_exact_weights_serve(
    any_oracle: Oracle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Int8, "available", lambda _: False)
    with caplog.at_level("WARNING"):
        engine = start_int8(any_oracle)
    assert "int8 is off" in caplog.text and not engine.stats()["int8"]
    same_as_oracle(engine, any_oracle)
