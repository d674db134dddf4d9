"""The one LoRA shape, over all families of models."""

from pathlib import Path

import pytest
import torch

from chatbot.model import lora
from chatbot.model.adapter import (
    verify_adapter,
    write_manifest,
)
from chatbot.model.base import Base, load_base
from tests.fixtures import tiny_models


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def any_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp(request.param)
    return load_base(str(tiny_models.write_model(folder, request.param)))


def test_what_peft_trains_and_saves_in_our_shape_is_served(any_base: Base, tmp_path: Path) -> None:
    from peft import get_peft_model

    model = get_peft_model(load_base(any_base.name).model, lora.lora_config(any_base))
    ids = torch.arange(5, 25)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    moved = [p for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        for parameter in moved:
            parameter -= 0.1 * parameter.grad
    model.save_pretrained(tmp_path / "draft")
    id = write_manifest(tmp_path / "draft", any_base, snapshot="s-1")
    adapter = verify_adapter(tmp_path / "draft", any_base)
    assert (adapter.id, adapter.rank, adapter.manifest["snapshot"]) == (id, lora.RANK, "s-1")
    assert adapter.matrices.keys() == lora.target_modules(any_base.model).keys()


def test_every_linear_but_the_head_learns(any_base: Base) -> None:
    names = {name.rsplit(".", 1)[-1] for name in lora.target_modules(any_base.model)}
    llama = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert names in (llama, {"c_attn", "c_proj", "c_fc"})
