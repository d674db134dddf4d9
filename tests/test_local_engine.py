"""Compares the in-process engine with transformers and PEFT, one stream alone and many together."""

import threading
import time
from pathlib import Path

import pytest
import torch

from chatbot.engine.local.local_engine import LocalEngine, resolve_device
from chatbot.engine.protocol import (
    BASE,
    Engine,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    PromptTooLongError,
    Request,
    Sampling,
    UnknownAdapterError,
)
from chatbot.engine.settings import EngineSettings
from chatbot.engine.stream import Stream
from chatbot.model.adapter import AdapterError
from tests.fixtures import tiny_models
from tests.fixtures.reference_model import QUESTIONS, Oracle, start_engine
from tests.fixtures.waiting import wait_for_first_token, wait_for_text, wait_until

# -- The same tokens as transformers + PEFT


def test_one_stream_says_what_transformers_and_peft_say(any_oracle: Oracle) -> None:
    engine = start_engine(any_oracle)
    for question in QUESTIONS[:3]:
        for voice in any_oracle.voices:
            stream = engine.submit(any_oracle.request(question, voice))
            text = wait_for_text(stream)
            assert stream.ids == any_oracle.answer(question, voice)
            assert text == stream.text == any_oracle.text(question, voice)
    engine.close()


@pytest.mark.parametrize("chunk", [256, 5])
def test_streams_of_all_adapters_in_one_batch_say_what_each_says_alone(
    any_oracle: Oracle, chunk: int
) -> None:
    engine = start_engine(any_oracle, chunk=chunk, slots=7)
    asked = [(q, v) for q in QUESTIONS for v in any_oracle.voices]
    streams = [engine.submit(any_oracle.request(q, v)) for q, v in asked]
    for (question, voice), stream in zip(asked, streams, strict=True):
        wait_for_text(stream)
        assert stream.ids == any_oracle.answer(question, voice), (question, voice)
    engine.close()


def test_the_adapters_really_differ(any_oracle: Oracle) -> None:
    for question in QUESTIONS[:3]:
        answers = {tuple(any_oracle.answer(question, voice)) for voice in any_oracle.voices}
        assert len(answers) == len(any_oracle.voices)


def test_streams_of_different_length_leave_and_join_without_disturbing_each_other(
    oracle: Oracle, engine: LocalEngine
) -> None:
    asked = [(q, v, 3 + 5 * n) for n, q in enumerate(QUESTIONS) for v in oracle.voices]
    streams = []
    for question, voice, tokens in asked:
        streams.append(engine.submit(oracle.request(question, voice, tokens)))
        time.sleep(0.003)
    for (question, voice, tokens), stream in zip(asked, streams, strict=True):
        wait_for_text(stream)
        assert stream.ids == oracle.answer(question, voice, tokens)


def test_a_cache_that_grows_keeps_what_it_holds(oracle: Oracle, engine: LocalEngine) -> None:
    streams = [engine.submit(oracle.request(q, BASE, 300)) for q in QUESTIONS[:2]]
    for question, stream in zip(QUESTIONS, streams, strict=False):
        wait_for_text(stream)
        assert stream.ids == oracle.answer(question, BASE, 300)


def test_an_engine_leaves_the_model_as_it_found_it(oracle: Oracle) -> None:
    oracle.base.model.to(resolve_device("auto"))
    ids = torch.tensor([oracle.prompt("Hello")], device=oracle.base.model.device)
    with torch.no_grad():
        before = oracle.base.model(ids).logits
        start_engine(oracle).close()
        assert torch.equal(before, oracle.base.model(ids).logits)
    assert "forward" not in vars(oracle.base.model.get_submodule("model.layers.0.mlp.up_proj"))


def test_one_base_serves_one_engine_at_a_time(oracle: Oracle, engine: LocalEngine) -> None:
    with pytest.raises(EngineError, match="serves another engine"):
        LocalEngine(oracle.base, EngineSettings(threads=1))


# -- Swaps (law 5)


def test_swaps_under_running_streams_drop_nothing_and_mix_nothing(oracle: Oracle) -> None:
    engine = LocalEngine(oracle.base, EngineSettings(threads=1, slots=6, queue=99))
    names, tokens = list(oracle.adapters), 40
    asked: list[tuple[str, str, Stream]] = []
    for turn in range(15):
        speaking, old = names[turn % 3], names[(turn - 1) % 3]
        engine.load(speaking, oracle.adapters[speaking])
        for question in QUESTIONS[turn % 2 :: 2]:
            asked.append(
                (question, speaking, engine.submit(oracle.request(question, speaking, tokens)))
            )
        if turn:
            engine.unload(old)
    for question, voice, stream in asked:
        assert wait_for_text(stream) == oracle.text(question, voice, tokens)
        assert stream.finish in ("stop", "length")
        assert stream.ids == oracle.answer(question, voice, tokens)
    engine.close()


def test_an_unloaded_adapter_ends_its_streams_and_then_leaves(oracle: Oracle) -> None:
    engine = start_engine(oracle)
    name = next(iter(oracle.adapters))
    stream = engine.submit(oracle.request(QUESTIONS[0], name, 200))
    engine.unload(name)
    assert name not in engine.adapters()
    with pytest.raises(UnknownAdapterError, match=name):
        engine.submit(oracle.request("Hello", name))
    wait_for_text(stream)
    assert stream.ids == oracle.answer(QUESTIONS[0], name, 200)
    wait_until(lambda: name not in engine.stats()["adapters"])
    assert all(name not in linear.matrices for linear in engine.scheduler.lora.linears.values())
    assert engine.stats()["memory"]["adapters"] > 0
    for other in oracle.adapters:
        engine.unload(other)
    wait_until(lambda: engine.stats()["memory"]["adapters"] == 0)
    engine.close()


def test_the_base_can_always_be_asked(engine: LocalEngine, oracle: Oracle) -> None:
    engine.unload(BASE)
    assert engine.adapters() == [BASE, *oracle.adapters]
    assert isinstance(engine, Engine)


def test_a_damaged_adapter_is_refused_and_service_goes_on(oracle: Oracle, tmp_path: Path) -> None:
    engine = LocalEngine(oracle.base, EngineSettings(threads=1))
    running = engine.submit(oracle.request(QUESTIONS[0], BASE, 200))
    folder = tiny_models.randomise_adapter(
        tiny_models.write_adapter(tmp_path, oracle.base), oracle.base, 9, float("nan")
    )
    with pytest.raises(AdapterError, match="NaN"):
        engine.load(folder.name, folder)
    other = next(iter(oracle.adapters))
    with pytest.raises(AdapterError, match=other):
        engine.load("a-000000000000", oracle.adapters[other])
    assert engine.adapters() == [BASE]
    wait_for_text(running)
    assert running.ids == oracle.answer(QUESTIONS[0], BASE, 200)
    engine.close()


# -- Streams: how they end


def test_a_cancelled_stream_frees_its_slot_at_once(oracle: Oracle) -> None:
    engine = start_engine(oracle, slots=1)
    first = engine.submit(oracle.request(QUESTIONS[0], BASE, 450))
    second = engine.submit(oracle.request(QUESTIONS[2], BASE, 8))
    assert next(iter(first))
    first.cancel()
    assert first.wait(5)
    assert first.finish == "cancelled"
    assert 0 < first.completion_tokens < 450
    wait_for_text(second)
    assert second.ids == oracle.answer(QUESTIONS[2], BASE, 8)
    wait_until(lambda: engine.stats()["running"] == 0)
    engine.close()


def test_a_stream_cancelled_while_it_waits_or_reads_its_prompt_never_runs(oracle: Oracle) -> None:
    engine = start_engine(oracle, slots=2, chunk=1)
    running = engine.submit(oracle.request(QUESTIONS[0], BASE, 300))
    reading = engine.submit(oracle.request(QUESTIONS[1], BASE, 300))
    waiting = engine.submit(oracle.request(QUESTIONS[2], BASE, 300))
    for stream in (waiting, reading):
        stream.cancel()
        assert stream.wait(5)
        assert stream.finish == "cancelled"
    wait_for_text(running)
    assert running.ids == oracle.answer(QUESTIONS[0], BASE, 300)
    engine.close()


def test_a_full_queue_says_busy(oracle: Oracle) -> None:
    engine = start_engine(oracle, slots=1, queue=2)
    streams = [engine.submit(oracle.request("Hello", BASE, 450)) for _ in range(3)]
    with pytest.raises(EngineBusyError) as refusal:
        engine.submit(oracle.request("Hello", BASE))
    assert refusal.value.retry_after > 0
    for stream in streams:
        stream.cancel()
    wait_until(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 0)
    assert wait_for_text(engine.submit(oracle.request("Hello", BASE))) == oracle.text("Hello", BASE)
    engine.close()


def test_who_is_turned_away_is_told_how_long_those_who_wait_will_take(oracle: Oracle) -> None:
    engine = start_engine(oracle, slots=1, queue=2)
    for ended, seconds in (([], 1), ([10.0, 13.5, 17.0], 7), ([0.0, 400.0], 60), ([1.0, 1.1], 1)):
        engine._retry_after._end_times.clear()
        engine._retry_after._end_times.extend(ended)
        streams = [engine.submit(oracle.request("Hello", BASE, 450)) for _ in range(3)]
        wait_until(lambda: engine.stats()["running"] == 1)
        with pytest.raises(EngineBusyError, match=f"Try again in {seconds} s") as refusal:
            engine.submit(oracle.request("Hello", BASE))
        assert refusal.value.retry_after == seconds
        for stream in streams:
            stream.cancel()
        wait_until(lambda: engine.stats()["running"] + engine.stats()["waiting"] == 0)
    assert len(engine._retry_after._end_times) > 2, "and each end is noted"
    engine.close()


def test_what_cannot_be_answered_is_refused_with_the_reason(engine: LocalEngine) -> None:
    with pytest.raises(PromptTooLongError, match="600 tokens and 512"):
        engine.submit(Request([5] * 600))
    with pytest.raises(EngineError, match="empty"):
        engine.submit(Request([]))
    with pytest.raises(UnknownAdapterError, match="a-nowhere"):
        engine.submit(Request([5], "a-nowhere"))
    limits = {"max_tokens": 0, "temperature": -1.0, "top_p": 0.0, "min_p": 2.0, "stop": ("",)}
    for bad in ({name: value} for name, value in limits.items()):
        with pytest.raises(EngineError, match=next(iter(bad))):
            engine.submit(Request([5], BASE, Sampling(**bad)))  # type: ignore[arg-type]


def test_a_stream_knows_its_numbers(oracle: Oracle, engine: LocalEngine) -> None:
    stream = engine.submit(oracle.request(QUESTIONS[0], BASE, 12))
    wait_for_text(stream)
    assert stream.finish == "length"
    assert stream.prompt_tokens == len(oracle.prompt(QUESTIONS[0]))
    assert stream.completion_tokens == 12
    assert stream.first_token_ms is not None and stream.total_ms is not None
    assert 0 < stream.first_token_ms <= stream.total_ms
    assert list(stream) == []


def test_the_context_ends_an_answer_at_the_models_limit(oracle: Oracle) -> None:
    engine = start_engine(oracle, max_length=40)
    stream = engine.submit(oracle.request("Hello", BASE, 400))
    wait_for_text(stream)
    assert stream.finish == "length"
    assert stream.prompt_tokens + stream.completion_tokens == 40
    engine.close()


def test_closing_ends_streams_as_cancelled(oracle: Oracle) -> None:
    engine = start_engine(oracle, slots=1)
    streams = [engine.submit(oracle.request("Hello", BASE, 450)) for _ in range(3)]
    engine.close()
    assert [stream.finish for stream in streams] == ["cancelled"] * 3
    with pytest.raises(EngineClosedError):
        engine.submit(oracle.request("Hello", BASE))
    engine.close()


def test_an_adapter_that_comes_too_late_is_told_so(oracle: Oracle) -> None:
    engine = LocalEngine(oracle.base, EngineSettings(threads=1))
    engine.close()
    name, folder = next(iter(oracle.adapters.items()))
    with pytest.raises(EngineClosedError):
        engine.load(name, folder)


def test_a_step_that_fails_ends_its_streams_and_the_next_request_is_served(
    oracle: Oracle, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = engine.scheduler.runner.forward

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    stream = wait_for_first_token(engine.submit(oracle.request(QUESTIONS[0], BASE, 450)))
    wait_for_text(engine.submit(oracle.request("Hello", BASE)))
    monkeypatch.setattr(engine.scheduler.runner, "forward", broken)
    wait_for_text(stream)
    assert stream.finish == "error"
    assert stream.error is not None and "out of memory" in stream.error
    monkeypatch.setattr(engine.scheduler.runner, "forward", good)
    assert wait_for_text(engine.submit(oracle.request("Hello", BASE))) == oracle.text("Hello", BASE)


def test_nan_in_one_stream_ends_it_and_spoils_no_other(oracle: Oracle) -> None:
    engine = start_engine(oracle)
    bad = next(iter(oracle.adapters))
    lora_layers = engine.scheduler.lora

    def spoil() -> None:
        for layer in (*lora_layers.linears.values(), *lora_layers.fused):
            for matrix in layer.matrices[bad]:
                matrix.fill_(float("nan"))
            layer.stacked.clear()
        getattr(engine.scheduler.runner, "_adapters", {}).clear()  # those packed for the kernels

    running = wait_for_first_token(engine.submit(oracle.request(QUESTIONS[3], bad, 450)))
    wait_for_text(engine.submit(oracle.request(QUESTIONS[4], BASE)))
    engine.call_between_steps(spoil)
    wait_for_text(running)
    assert wait_for_text(engine.submit(oracle.request(QUESTIONS[4], BASE))) == oracle.text(
        QUESTIONS[4], BASE
    )
    spoilt = [running, *(engine.submit(oracle.request(q, bad)) for q in QUESTIONS[:3])]
    for stream in spoilt:
        wait_for_text(stream)
        assert stream.finish == "error"
        assert stream.error is not None and bad in stream.error
    read = torch.tensor(oracle.prompt(QUESTIONS[0]))
    assert engine.scheduler.prefixes.cache.match_prefix(bad, read)[0] == 0
    for voice in (v for v in oracle.voices if v != bad):
        for question in (*QUESTIONS[:3], QUESTIONS[4]):
            stream = engine.submit(oracle.request(question, voice))
            wait_for_text(stream)
            assert stream.ids == oracle.answer(question, voice)
    engine.close()


# -- Text


def test_a_stop_string_split_over_tokens_never_shows(oracle: Oracle, engine: LocalEngine) -> None:
    whole = oracle.text(QUESTIONS[0], BASE)
    for at in range(2, len(whole) - 6, 3):
        stop = whole[at : at + 4]
        request = Request(
            oracle.prompt(QUESTIONS[0]), BASE, Sampling(max_tokens=24, stop=("never", stop))
        )
        stream = engine.submit(request)
        deltas = list(stream)
        assert "".join(deltas) == whole[: whole.index(stop)]
        assert stream.finish == "stop"


def test_deltas_are_whole_characters_and_add_up(oracle: Oracle, engine: LocalEngine) -> None:
    from chatbot.engine.text.detokenizer import Detokenizer

    text = "漢字 naïve 🙂🎉 \U0001f9d1\u200d\U0001f680 Ωmega\u0300"
    ids = oracle.base.tokenizer(text, add_special_tokens=False)["input_ids"]
    words = Detokenizer(oracle.base.tokenizer)
    pieces = [words.add(token)[0] for token in ids]
    assert "".join(pieces) + words.flush()[0] == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces, "some character must span tokens, or this test shows nothing"


def test_many_threads_may_submit_at_once(oracle: Oracle) -> None:
    engine = start_engine(oracle, slots=4)
    wrong: list[str] = []

    def ask(question: str, voice: str) -> None:
        stream = engine.submit(oracle.request(question, voice))
        if "".join(stream) != oracle.text(question, voice):
            wrong.append(f"{voice}: {question}")

    asked = [(q, v) for q in QUESTIONS for v in oracle.voices]
    for question, voice in asked:
        oracle.answer(question, voice)
    threads = [threading.Thread(target=ask, args=pair) for pair in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    engine.close()
