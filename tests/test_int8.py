"""The path in eight bits: nearly the same answers, and the exact weights where they are not."""

from collections.abc import Iterator

import pytest
import torch

from chatbot.base import load_base
from chatbot.engine import BASE, Request, Sampling, Stream
from chatbot.inprocess.batching import EngineSettings, TorchEngine
from chatbot.lora import RANK
from tests.oracle import QUESTIONS, Oracle
from tests.streams import finish, until

pytest.importorskip("openvino")
from chatbot.inprocess.fused import joints
from chatbot.inprocess.paged import BLOCK, PagedCache
from chatbot.inprocess.path import Part
from chatbot.inprocess.wardrobe import PATIENCE, Wardrobe


def start_int8(oracle: Oracle, **settings: int) -> TorchEngine:
    engine = TorchEngine(oracle.base, EngineSettings(threads=1, kind="int8", **settings))
    for name, folder in oracle.adapters.items():
        engine.load(name, folder)
    return engine


@pytest.fixture
def engine(oracle: Oracle) -> Iterator[TorchEngine]:
    engine = start_int8(oracle)
    assert engine.stats()["int8"]
    yield engine
    engine.close()


def ask(engine: TorchEngine, *requests: Request) -> list[list[int]]:
    """What they are answered, all at the same time."""
    streams = [engine.submit(request) for request in requests]
    for stream in streams:
        finish(stream)
        assert stream.error is None
    return [stream.ids for stream in streams]


def test_eight_bits_say_nearly_the_same_and_take_a_byte_a_weight_more(any_oracle: Oracle) -> None:
    engine = start_int8(any_oracle)
    if any_oracle.base.model.config.model_type == "gpt2":
        assert not engine.stats()["int8"] and engine.close() is None
        return
    model = any_oracle.base.model
    linears = [each.weight for each in model.modules() if isinstance(each, torch.nn.Linear)]
    own, more = sum(p.nbytes for p in model.parameters()), sum(p.numel() for p in linears)
    assert engine.stats()["int8"] and engine.stats()["fast"]
    assert engine.stats()["memory"]["weights"] == own + more
    asked = [(question, voice) for question in QUESTIONS for voice in any_oracle.voices]
    said = ask(engine, *(any_oracle.request(question, voice, 8) for question, voice in asked))
    expected = [any_oracle.answer(question, voice, 8) for question, voice in asked]
    same = sum(ids[:1] == right[:1] for ids, right in zip(said, expected, strict=True))
    assert same >= 0.8 * len(asked)
    wears = engine._batch._path._wardrobe.nbytes
    assert engine.stats()["memory"]["adapters"] == engine._batch.adapters.bytes + wears > wears > 0
    engine.close()


def test_alone_and_in_company_eight_bits_say_the_same(oracle: Oracle, engine: TorchEngine) -> None:
    requests = [
        oracle.request(question, voice) for question in QUESTIONS for voice in oracle.voices
    ]
    assert ask(engine, *requests) == [ask(engine, request)[0] for request in requests]


def test_an_adapter_speaks_as_merged_weights_would(oracle: Oracle, engine: TorchEngine) -> None:
    answers = {
        voice: ask(engine, oracle.request(QUESTIONS[1], voice))[0] for voice in oracle.voices
    }
    assert len({tuple(ids) for ids in answers.values()}) == len(oracle.voices)


def test_a_later_turn_reads_only_what_is_new_and_says_the_same(
    oracle: Oracle, engine: TorchEngine
) -> None:
    voice = oracle.voices[1]
    first = oracle.prompt(QUESTIONS[1]) * 3
    said = ask(engine, Request(first, voice, Sampling(max_tokens=BLOCK)))[0]
    second = Request([*first, *said, *oracle.prompt(QUESTIONS[2])], voice, Sampling(max_tokens=24))
    assert len(first) % BLOCK and len(first) > 2 * BLOCK
    before = engine.stats()["recalled"]
    recalled = ask(engine, second)[0]
    assert engine.stats()["recalled"] - before == len(first) + len(said) - 1
    fresh = start_int8(load_again(oracle), prefix_mb=0)
    assert ask(fresh, second)[0] == recalled
    fresh.close()


def test_a_path_apart_says_the_same_from_its_first_step_on(engine: TorchEngine) -> None:
    path = engine._batch._path
    first, second = path.apart(1, BLOCK), path.apart(1, BLOCK)
    with torch.inference_mode():
        part = Part(0, [5], 0, None)
        said = first.read([part]).clone()
        assert torch.equal(first.apart(1, BLOCK).read([part]), said)
        assert torch.equal(second.read([part]), said)


def load_again(oracle: Oracle) -> Oracle:
    return Oracle(oracle.path, load_base(str(oracle.path)), oracle.adapters)


def test_long_prompts_are_read_in_chunks_beside_running_streams(oracle: Oracle) -> None:
    engine = start_int8(oracle, chunk=16)
    long = Request(oracle.prompt(QUESTIONS[1]) * 2, oracle.voices[2], Sampling(max_tokens=12))
    asked = [oracle.request(QUESTIONS[0], BASE, 40), long, oracle.request(QUESTIONS[3], BASE, 12)]
    together = ask(engine, *asked)
    engine.close()
    alone = start_int8(load_again(oracle), prefix_mb=0)
    assert together == [ask(alone, request)[0] for request in asked]
    alone.close()


def test_adapters_that_nobody_speaks_with_leave_the_graph_after_a_while(
    oracle: Oracle, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.inprocess.wardrobe.PATIENCE", 64)  # longer than an answer
    path = engine._batch._path
    first, second, _ = oracle.adapters
    ask(engine, *(oracle.request(QUESTIONS[0], voice) for voice in (first, second, BASE)))
    assert set(path._wardrobe.worn) >= {first, second}
    alone = ask(engine, oracle.request(QUESTIONS[3], second))[0]
    assert set(path._wardrobe.worn) >= {first, second}
    while first in path._wardrobe.worn:
        assert ask(engine, oracle.request(QUESTIONS[3], second))[0] == alone
    assert path._wardrobe.worn == (second,)


@pytest.fixture
def wardrobe(oracle: Oracle, engine: TorchEngine) -> Wardrobe:
    layers = range(len(oracle.base.model.model.layers))
    return Wardrobe(engine._batch.adapters, [joints(index) for index in layers])


def test_matrices_of_a_set_that_spoke_before_are_not_made_again(
    oracle: Oracle, wardrobe: Wardrobe
) -> None:
    first, second, _ = oracle.adapters
    both, alone = wardrobe.wear([second, first]), wardrobe.wear([])
    assert all(matrix.size == 0 for matrix in alone.values())
    assert wardrobe.wear([first, second]) is both and wardrobe.wear([]) is alone
    made = wardrobe.wear([first])
    assert wardrobe.wear([first, second]) is both and wardrobe.wear([first]) is made
    assert wardrobe.nbytes == sum(each.nbytes for each in (*both.values(), *made.values()))


def test_who_stops_speaking_is_worn_a_while_and_then_no_more(
    oracle: Oracle, wardrobe: Wardrobe
) -> None:
    first, second, third = oracle.adapters
    wardrobe.wear([first])
    wardrobe.wear([second])
    assert set(wardrobe.worn) == {first, second}
    for _ in range(PATIENCE):
        wardrobe.wear([second])
        assert set(wardrobe.worn) == {first, second}
    wardrobe.wear([second])
    assert wardrobe.worn == (second,)
    wardrobe.wear([third])
    assert set(wardrobe.worn) == {second, third}


def test_an_adapter_that_is_gone_is_worn_no_more_and_takes_no_memory(
    oracle: Oracle, engine: TorchEngine, wardrobe: Wardrobe
) -> None:
    first, second, _ = oracle.adapters
    wardrobe.wear([first])
    wardrobe.wear([second])
    engine._batch.adapters.drop(first)
    wardrobe.drop(first)
    alone = wardrobe.wear([second])
    assert wardrobe.worn == (second,)
    assert wardrobe.nbytes == sum(each.nbytes for each in alone.values())


def test_an_unloaded_adapter_leaves_the_graph_without_another_step(
    oracle: Oracle, engine: TorchEngine
) -> None:
    first = next(iter(oracle.adapters))
    wardrobe = engine._batch._path._wardrobe
    for last, worn in ((first, (first,)), (BASE, ())):  # in the graph, and kept beside it
        ask(engine, oracle.request(QUESTIONS[0], first))
        ask(engine, oracle.request(QUESTIONS[0], last))
        assert wardrobe.worn == worn and wardrobe.nbytes > 0
        engine.unload(first)
        until(lambda: wardrobe.nbytes == 0)
        assert engine.stats()["memory"]["adapters"] == engine._batch.adapters.bytes
        engine.load(first, oracle.adapters[first])


def test_all_blocks_come_back(oracle: Oracle) -> None:
    engine = start_int8(oracle, slots=3, prefix_mb=0)
    cache = engine._batch._path.cache
    assert isinstance(cache, PagedCache)
    room = len(cache._free)
    streams = [engine.submit(oracle.request(q, v, 60)) for q in QUESTIONS for v in oracle.voices]
    for stream in streams[::3]:
        stream.cancel()
    for stream in streams:
        finish(stream)
    engine.close()
    cache.wipe()
    assert sorted(cache._free) == list(range(room))


def test_eight_bits_that_lie_too_far_off_are_refused(
    oracle: Oracle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.inprocess.graph.WIDEST", 3)  # two bits and a sign
    with caplog.at_level("WARNING"):
        engine = start_int8(oracle)
    assert "int8 is off: with the base" in caplog.text
    assert engine.stats()["fast"] and not engine.stats()["int8"]
    same_as_oracle(engine, oracle)


def test_an_adapter_that_eight_bits_get_wrong_brings_the_exact_weights_back(
    oracle: Oracle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(oracle.base, EngineSettings(threads=1, kind="int8", chunk=16))
    (early, place), (name, folder), *_ = oracle.adapters.items()
    engine.load(early, place)
    asked = [oracle.request(q, v, 200) for q in QUESTIONS for v in (early, BASE)]
    running = [engine.submit(request) for request in asked]
    until_said(running[0], 5)
    with monkeypatch.context() as strict, caplog.at_level("WARNING"):
        strict.setattr("chatbot.inprocess.probe.INT8", 1e-6)
        engine.load(name, folder)
    before = [len(stream.ids) for stream in running]
    assert f"int8 is off: with {name}" in caplog.text
    assert engine.stats()["fast"] and not engine.stats()["int8"]
    for stream in running:
        finish(stream)
        assert stream.error is None
    for other, folder in oracle.adapters.items():
        engine.load(other, folder)
    # What they had read was read anew: they went on as the exact weights do from there.
    for request, stream, point in zip(asked, running, before, strict=True):
        rest = stream.ids[point:]
        ids = [*request.prompt_ids, *stream.ids[:point]]
        if rest:
            onward = Request(ids, request.adapter, Sampling(max_tokens=len(rest)))
            assert ask(engine, onward)[0] == rest
    assert any(len(stream.ids) > point + 20 for stream, point in zip(running, before, strict=True))
    same_as_oracle(engine, oracle)


def until_said(stream: Stream, tokens: int) -> None:
    for _ in stream:
        if len(stream.ids) >= tokens:
            return


def same_as_oracle(engine: TorchEngine, oracle: Oracle) -> None:
    for voice in oracle.voices:
        stream = engine.submit(oracle.request(QUESTIONS[0], voice))
        finish(stream)
        assert stream.ids == oracle.answer(QUESTIONS[0], voice)
    engine.close()


def test_without_openvino_the_exact_weights_serve(
    oracle: Oracle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.inprocess.probe.find_spec", lambda _: None)
    with caplog.at_level("WARNING"):
        engine = start_int8(oracle)
    assert "pip install 'talkback[int8]'" in caplog.text and not engine.stats()["int8"]
    same_as_oracle(engine, oracle)


def test_a_row_that_computes_no_number_spoils_no_other(oracle: Oracle, engine: TorchEngine) -> None:
    name = oracle.voices[1]
    linear = next(iter(engine._batch.adapters.linears.values()))
    expected = ask(engine, oracle.request(QUESTIONS[0], BASE))[0]
    a, b = linear.pairs[name]
    assert a.shape[0] == RANK
    linear.pairs[name] = a * 1e30, b * 1e30  # each is a number, their product none
    spoilt = engine.submit(oracle.request(QUESTIONS[0], name))
    sound = engine.submit(oracle.request(QUESTIONS[0], BASE))
    finish(spoilt)
    finish(sound)
    assert spoilt.finish == "error" and "NaN" in str(spoilt.error)
    assert sound.ids == expected
    assert ask(engine, oracle.request(QUESTIONS[0], BASE))[0] == expected
