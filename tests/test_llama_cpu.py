"""Our own kernels: they compute what torch does, in eight bits nearly, and the same bits whatever
is computed beside."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chatbot.engine.local.kernels.library import kernel_library
from chatbot.engine.local.kv_cache import SlotKVCache
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.local.multi_lora import LoraLayers
from chatbot.engine.local.runners.llama_cpu import LlamaCpuRunner, LlamaInt8Runner
from chatbot.engine.local.runners.runner import Chunk
from chatbot.engine.local.runners.transformers_runner import TransformersRunner
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.model.adapter import verify_adapter
from chatbot.model.base import load_base
from chatbot.model.lora import target_modules
from tests.fixtures import tiny_models
from tests.fixtures.reference_model import QUESTIONS, Oracle
from tests.fixtures.waiting import wait_for_text, wait_until

LIBRARY = kernel_library()
pytestmark = pytest.mark.skipif(
    LIBRARY is None, reason="no kernels: they take AVX-512 with VNNI and a C compiler"
)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let eight bits be coarser with tiny random weights and adapters than with real ones."""
    monkeypatch.setattr("chatbot.engine.local.runners.select_runner.MAX_INT8_KL", 0.1)


class World:
    """Holds a tiny model in a type, two adapters, and the runner through transformers."""

    def __init__(self, folder: Path, family: tiny_models.Family, dtype: str) -> None:
        written = tiny_models.write_model(folder / "base", family, initializer_range=0.1)
        base = load_base(str(written), dtype=dtype)
        adapters = LoraLayers(base.model, list(target_modules(base.model)))
        self.reference = TransformersRunner(base.model, adapters, SlotKVCache(4, 400))
        self.adapters = []
        for seed in (1, 2):
            made = tiny_models.write_adapter(folder, base, seed=seed)
            matrices = verify_adapter(made, base).matrices
            adapters.install(made.name, adapters.prepare(matrices, self.reference.like))
            self.adapters.append(made.name)

    def steps(self) -> list[list[Chunk]]:
        """Return forwards of prompts of several lengths beside decoded tokens, on all voices."""
        one, two = self.adapters
        generator = torch.Generator().manual_seed(1)
        ids = [torch.randint(10, 300, (1000,), generator=generator).tolist() for _ in range(4)]
        return [
            [Chunk(0, ids[0][:5], 0, one), Chunk(1, ids[1][:170], 0, None)],
            [
                Chunk(0, ids[0][5:6], 5, one),
                Chunk(1, ids[1][170:173], 170, None, num_logits=2),
                Chunk(2, ids[2][:40], 0, two),
            ],
            [
                Chunk(0, ids[0][6:7], 6, one),
                Chunk(1, ids[1][173:174], 173, None),
                Chunk(2, ids[2][40:140], 40, two, num_logits=60),
                Chunk(3, ids[3][:300], 0, one),
            ],
        ]


Kind = type[LlamaCpuRunner]


@pytest.fixture(params=["float32", "bfloat16"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """Return a Llama in each type."""
    return World(tmp_path, "llama", request.param)


@torch.inference_mode()
def compute_logits(runner: TransformersRunner, steps: list[list[Chunk]]) -> list[torch.Tensor]:
    """Return the logits of forwards over a cache of their own, in float32."""
    runner = runner.with_own_cache(4, 400)
    return [runner.forward(chunks).float().clone() for chunks in steps]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "dtype, kind, near",
    [
        ("float32", LlamaCpuRunner, 1e-5),
        ("bfloat16", LlamaCpuRunner, 0.05),
        ("float32", LlamaInt8Runner, 0.05),
    ],
)
def test_a_forward_computes_the_logits_of_transformers(
    tmp_path: Path, family: tiny_models.Family, dtype: str, kind: Kind, near: float
) -> None:
    world = World(tmp_path, family, dtype)
    expected = compute_logits(world.reference, world.steps())
    runner = kind(world.reference)
    for found, right in zip(compute_logits(runner, world.steps()), expected, strict=True):
        assert (found - right).norm() < near * right.norm()
    shared = compute_logits(runner.reference(), world.steps())  # it goes on over the shared weights
    for found, right in zip(shared, expected, strict=True):
        assert (found - right).norm() < 0.05 * right.norm()
    runner.restore_weights()
    restored = compute_logits(world.reference, world.steps())
    assert all(torch.equal(*each) for each in zip(restored, expected, strict=True))


@pytest.mark.usefixtures("kernels", "threads")
@pytest.mark.parametrize("kind", [LlamaCpuRunner, LlamaInt8Runner])
def test_the_same_bits_alone_and_in_company_at_once_and_in_pieces(world: World, kind: Kind) -> None:
    runner = kind(world.reference)
    together = compute_logits(runner, world.steps())
    alone: list[list[torch.Tensor]] = [[], [], []]
    for row in range(4):
        of_row = [[chunk for chunk in chunks if chunk.row == row] for chunks in world.steps()]
        for step, logits in zip(
            [step for step, chunks in enumerate(of_row) if chunks],
            compute_logits(runner, [chunks for chunks in of_row if chunks]),
            strict=True,
        ):
            alone[step].append(logits)
    for found, right in zip(alone, together, strict=True):
        assert torch.equal(torch.cat(found), right)
    pieces = [
        [Chunk(chunk.row, chunk.ids[i : i + 1], chunk.start + i, chunk.adapter)]
        for chunks in world.steps()
        for chunk in chunks
        if chunk.row == 1
        for i in range(len(chunk.ids))
    ]
    whole = together[2][1]
    assert torch.equal(compute_logits(runner, pieces)[-1][0], whole)


def start_int8(oracle: Oracle, **settings: int) -> LocalEngine:
    """Start an engine in eight bits with all adapters loaded."""
    engine = LocalEngine(oracle.base, EngineSettings(threads=1, kind="int8", **settings))
    for name, folder in oracle.adapters.items():
        engine.load(name, folder)
    return engine


@pytest.fixture
def engine(oracle: Oracle) -> Iterator[LocalEngine]:
    """Yield an engine in eight bits."""
    engine = start_int8(oracle)
    assert engine.stats()["int8"]
    yield engine
    engine.close()


def ask(engine: LocalEngine, *requests: Request) -> list[list[int]]:
    """Submit requests all at once; return the token ids of their answers."""
    streams = [engine.submit(request) for request in requests]
    for stream in streams:
        wait_for_text(stream)
        assert stream.error is None
    return [stream.ids for stream in streams]


def test_a_family_takes_its_kernels_and_others_transformers_forward(any_oracle: Oracle) -> None:
    engine = LocalEngine(any_oracle.base, EngineSettings(threads=1))
    family = any_oracle.base.model.config.model_type != "gpt2"
    assert engine.scheduler.runner.name == ("llama_cpu" if family else "transformers")
    engine.close()


def test_adapters_packed_for_the_kernels_count_as_memory_and_are_let_go(oracle: Oracle) -> None:
    engine = LocalEngine(oracle.base, EngineSettings(threads=1))
    name, folder = next(iter(oracle.adapters.items()))
    before = engine.stats()["memory"]["adapters"]
    engine.load(name, folder)
    a, b = zip(
        *(linear.matrices[name] for linear in engine.scheduler.lora.linears.values()), strict=True
    )
    assert engine.stats()["memory"]["adapters"] - before >= 2 * sum(each.nbytes for each in a + b)
    engine.unload(name)
    wait_until(lambda: engine.stats()["memory"]["adapters"] == before)
    engine.close()


def test_kernels_that_compute_something_else_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        engine = LocalEngine(tiny_models.base_with_hook(tmp_path), EngineSettings(threads=1))
    assert engine.scheduler.runner.name == "transformers"
    assert "this model computes more than its layers do" in caplog.text
    engine.close()


def test_without_kernels_torch_serves_and_the_log_says_why(
    oracle: Oracle,
    torch_only: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        engine = start_int8(oracle)
    assert "int8 is off: its kernels are not there" in caplog.text
    assert "pip compiles them where there is a C compiler" in caplog.text
    assert "computed by torch" in caplog.text
    assert engine.scheduler.runner.name == "llama_torch" and not engine.stats()["int8"]
    same_as_oracle(engine, oracle)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"hidden_act": "gelu"}, "silu"),
        ({"head_dim": 260}, "heads of 260"),
        ({"intermediate_size": 98}, "98 is none"),
    ],
)
def test_what_the_kernels_cannot_compute_torch_does(
    tmp_path: Path, changes: dict[str, object], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base(str(tiny_models.write_model(tmp_path, "llama", **changes)))
    with caplog.at_level("INFO"):
        engine = LocalEngine(base, EngineSettings(threads=1))
    assert engine.scheduler.runner.name == "llama_torch" and words in caplog.text
    engine.close()


def test_eight_bits_say_nearly_the_same_and_take_a_byte_a_weight_more(any_oracle: Oracle) -> None:
    engine = start_int8(any_oracle)
    if any_oracle.base.model.config.model_type == "gpt2":
        assert not engine.stats()["int8"] and engine.close() is None
        return
    model = any_oracle.base.model
    linears = [each.weight for each in model.modules() if isinstance(each, torch.nn.Linear)]
    weight_bytes = sum(p.nbytes for p in model.parameters())
    more = sum(p.numel() for p in linears)
    assert engine.stats()["int8"] and engine.stats()["fast"]
    panels = engine.stats()["memory"]["weights"] - weight_bytes
    assert more <= panels < 1.3 * more, "they are filled up"
    asked = [(question, voice) for question in QUESTIONS for voice in any_oracle.voices]
    answers = ask(engine, *(any_oracle.request(question, voice, 8) for question, voice in asked))
    expected = [any_oracle.answer(question, voice, 8) for question, voice in asked]
    same = sum(ids[:1] == right[:1] for ids, right in zip(answers, expected, strict=True))
    assert same >= 0.8 * len(asked)
    engine.close()


def test_an_adapter_speaks_as_merged_weights_would(oracle: Oracle, engine: LocalEngine) -> None:
    answers = {
        voice: ask(engine, oracle.request(QUESTIONS[1], voice))[0] for voice in oracle.voices
    }
    assert len({tuple(ids) for ids in answers.values()}) == len(oracle.voices)


def test_a_later_turn_reads_only_what_is_new_and_says_the_same(
    oracle: Oracle, engine: LocalEngine
) -> None:
    voice = oracle.voices[1]
    first = oracle.prompt(QUESTIONS[1]) * 3
    answer = ask(engine, Request(first, voice, Sampling(max_tokens=32)))[0]
    second = Request(
        [*first, *answer, *oracle.prompt(QUESTIONS[2])], voice, Sampling(max_tokens=24)
    )
    before = engine.stats()["recalled"]
    recalled = ask(engine, second)[0]
    assert engine.stats()["recalled"] - before == len(first) + len(answer) - 1
    fresh = start_int8(load_again(oracle), prefix_mb=0, chunk=16)
    assert ask(fresh, second)[0] == recalled
    fresh.close()


def load_again(oracle: Oracle) -> Oracle:
    """Load the base once more: one base serves one engine."""
    return Oracle(oracle.path, load_base(str(oracle.path)), oracle.adapters)


def test_eight_bits_that_lie_too_far_off_are_refused(
    oracle: Oracle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.engine.local.kernels.panels.MAX_INT8", 3)  # two bits and a sign
    with caplog.at_level("WARNING"):
        engine = start_int8(oracle)
    assert "int8 is off: with the base" in caplog.text
    assert engine.stats()["fast"] and not engine.stats()["int8"]
    same_as_oracle(engine, oracle)


def test_an_adapter_that_eight_bits_get_wrong_brings_the_exact_weights_back(
    oracle: Oracle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(oracle.base, EngineSettings(threads=1, kind="int8", chunk=16))
    (early, early_folder), (name, folder), *_ = oracle.adapters.items()
    engine.load(early, early_folder)
    asked = [oracle.request(q, v, 200) for q in QUESTIONS for v in (early, BASE)]
    running = [engine.submit(request) for request in asked]
    wait_until(lambda: len(running[0].ids) >= 5)
    with monkeypatch.context() as strict, caplog.at_level("WARNING"):
        strict.setattr("chatbot.engine.local.runners.select_runner.MAX_INT8_KL", 0.0)
        engine.load(name, folder)
    before = [len(stream.ids) for stream in running]
    assert f"int8 is off: with {name}" in caplog.text
    assert engine.scheduler.runner.name == "llama_cpu"
    for stream in running:
        wait_for_text(stream)
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


def test_what_eight_bits_have_left_behind_is_read_anew(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(oracle.base, EngineSettings(threads=1, kind="int8"))
    ask(engine, oracle.request(QUESTIONS[0], BASE))
    with monkeypatch.context() as strict:
        strict.setattr("chatbot.engine.local.runners.select_runner.MAX_INT8_KL", 0.0)
        engine.load(*next(iter(oracle.adapters.items())))
    assert ask(engine, oracle.request(QUESTIONS[0], BASE))[0] == oracle.answer(QUESTIONS[0], BASE)
    assert engine.stats()["recalled"] == 0
    engine.close()


def same_as_oracle(engine: LocalEngine, oracle: Oracle) -> None:
    """Assert that all voices answer as transformers and peft do, and close the engine."""
    for voice in oracle.voices:
        assert ask(engine, oracle.request(QUESTIONS[3], voice)) == [
            oracle.answer(QUESTIONS[3], voice)
        ]
    engine.close()


@pytest.mark.parametrize("kind", ["torch", "int8"])
def test_a_row_that_computes_no_number_spoils_no_other(oracle: Oracle, kind: str) -> None:
    engine = LocalEngine(oracle.base, EngineSettings(threads=1, kind=kind))
    name, folder = next(iter(oracle.adapters.items()))
    expected = ask(engine, oracle.request(QUESTIONS[0], BASE))[0]
    engine.load(name, folder)
    linear = next(iter(engine.scheduler.lora.linears.values()))
    a, b = linear.matrices[name]
    linear.matrices[name] = a * 1e30, b * 1e30  # each is a number, their product none
    engine.scheduler.runner._adapters.clear()
    spoilt = engine.submit(oracle.request(QUESTIONS[0], name))
    sound = engine.submit(oracle.request(QUESTIONS[0], BASE))
    wait_for_text(spoilt)
    wait_for_text(sound)
    assert spoilt.finish == "error" and "NaN" in str(spoilt.error)
    assert sound.ids == expected
    assert ask(engine, oracle.request(QUESTIONS[0], BASE))[0] == expected
    engine.close()


@pytest.mark.parametrize(
    "chunk, words",
    [
        (Chunk(0, [5, 384], 0, None), "has 384 tokens, none of them 384"),
        (Chunk(0, [-1], 0, None), "has 384 tokens"),
        (Chunk(0, [5] * 9, 0, None), "1 rows of 9 positions are more than"),
        (Chunk(2, [5], 0, None), "3 rows of 1 positions are more than"),
    ],
)
def test_what_lies_outside_of_the_model_or_the_cache_is_refused(
    tmp_path: Path, chunk: Chunk, words: str
) -> None:
    runner = LlamaCpuRunner(World(tmp_path, "llama", "float32").reference).with_own_cache(2, 8)
    with pytest.raises(ValueError, match=words):
        runner.forward([chunk])
