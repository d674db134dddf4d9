"""The runner in torch: taken where it computes what transformers does, left where not."""

from pathlib import Path

import pytest
import torch

from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.local.runners import fused_linear, llama_layer
from chatbot.engine.local.runners.rotary import INITIAL_POSITIONS, RotaryTable
from chatbot.engine.protocol import BASE, Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.model.base import load_base
from tests.fixtures import tiny_models
from tests.fixtures.reference_model import QUESTIONS, Oracle, start_engine
from tests.fixtures.waiting import wait_for_text

pytestmark = pytest.mark.usefixtures("torch_only")


def test_the_llama_family_takes_it_and_others_transformers_forward(any_oracle: Oracle) -> None:
    engine = start_engine(any_oracle)
    family = any_oracle.base.model.config.model_type != "gpt2"
    assert engine.scheduler.runner.name == ("llama_torch" if family else "transformers")
    assert engine.stats()["fast"] == family
    asked = [(question, voice) for question in QUESTIONS for voice in any_oracle.voices]
    streams = [engine.submit(any_oracle.request(*each)) for each in asked]
    for stream, each in zip(streams, asked, strict=True):
        wait_for_text(stream)
        assert stream.ids == any_oracle.answer(*each)
    engine.close()


def test_a_runner_that_computes_something_else_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_models.base_with_hook(tmp_path)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    with caplog.at_level("WARNING"):
        engine = LocalEngine(base, EngineSettings(threads=1))
    assert not engine.stats()["fast"] and "The fast path is off" in caplog.text
    wait_for_text(engine.submit(Request([5, 6, 7], BASE, Sampling(max_tokens=4))))
    engine.close()
    after = base.model.state_dict()
    assert all(torch.equal(before[name], after[name].cpu()) for name in before)


def test_an_adapter_it_gets_wrong_puts_all_streams_on_transformers_forward(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(oracle.base, EngineSettings(threads=1))
    running = engine.submit(oracle.request(QUESTIONS[0], BASE, 200))
    name, folder = next(iter(oracle.adapters.items()))
    with monkeypatch.context() as broken:
        broken.setattr(
            fused_linear.FusedLinear, "__call__", lambda self, x: self._shared_weights.product(x)
        )
        engine.load(name, folder)
    assert not engine.stats()["fast"]
    stream = engine.submit(oracle.request(QUESTIONS[0], name))
    wait_for_text(running)
    wait_for_text(stream)
    assert running.ids == oracle.answer(QUESTIONS[0], BASE, 200)
    assert stream.ids == oracle.answer(QUESTIONS[0], name)
    engine.close()


def test_it_serves_bfloat16_and_holds_the_weights_once(tmp_path: Path) -> None:
    path = tiny_models.write_model(tmp_path, "qwen3", initializer_range=0.05)
    base = load_base(str(path), dtype="bfloat16")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    engine = LocalEngine(base, EngineSettings(threads=1))
    assert engine.stats()["fast"]
    assert base.model.model.layers[0].mlp.up_proj.weight.numel() == 0
    engine.close()
    after = base.model.state_dict()
    assert all(torch.equal(before[name], after[name].cpu()) for name in before)


@pytest.mark.parametrize("rows, queries, used", [(16, 3, 300), (1, 96, 200)])
def test_attention_by_products_reads_what_torch_reads(
    monkeypatch: pytest.MonkeyPatch, rows: int, queries: int, used: int
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    q = torch.randn(rows, 4, queries, 64, dtype=torch.bfloat16)[:, :3]  # keys lie behind them
    stored = torch.randn(2, rows, 3, 2 * used, 64, dtype=torch.bfloat16)
    keys, values = stored[:, :, :, :used]
    seen = torch.arange(used) <= torch.randint(used, (rows, 1, queries, 1))
    hidden = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(each.double() for each in (q, keys, values)), attn_mask=seen, scale=0.1
    )
    assert rows * 3 * used * (12 + queries) > llama_layer.MIN_BMM_WORK
    found = llama_layer.attention(q, keys, values, hidden, 0.1)
    assert (found - expected).norm() < 0.01 * expected.norm()


ROPES = [
    {"rope_type": "default"},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_the_table_holds_the_models_cos_and_sin_however_far_a_forward_reaches(
    tmp_path: Path, rope: dict[str, object]
) -> None:
    path = tiny_models.write_model(tmp_path, "llama", rope_parameters={"rope_theta": 1e4, **rope})
    model = load_base(str(path)).model
    rotary = load_base(str(path)).model.model.rotary_emb
    table = RotaryTable(model, torch.empty(0))
    for values in ([0], [7, 3, 300], [3 * INITIAL_POSITIONS, 5], [2, 1]):
        positions = torch.tensor(values)
        expected = [each[0] for each in rotary(torch.empty(0), positions[None])]
        for found, right in zip(table(positions, max(values) + 1), expected, strict=True):
            assert torch.equal(found, right)
