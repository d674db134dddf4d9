"""Adapters: their names, and what is refused before it is served."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatbot.model.adapter import (
    WEIGHTS_FILE,
    AdapterError,
    adapter_id,
    verify_adapter,
    write_manifest,
)
from chatbot.model.base import Base, load_base
from tests.fixtures import tiny_models
from tests.fixtures.disks import small_disk


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(tiny_models.write_model(tmp_path_factory.mktemp("base"))))


@pytest.fixture
def adapter(base: Base, tmp_path: Path) -> Path:
    return tiny_models.write_adapter(tmp_path, base)


def test_the_name_follows_the_content_and_nothing_else(adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    edit_json(copy / "adapter_config.json", {"base_model_name_or_path": "elsewhere"})
    assert adapter_id(copy) == adapter.name
    edit_json(copy / "adapter_config.json", {"lora_alpha": 64})
    assert adapter_id(copy) != adapter.name


# -- Refused, each with its reason


def edit_json(file: Path, changes: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def renamed(folder: Path) -> Path:
    """The folder under the name that its changed content has, as a forger would leave it."""
    id = adapter_id(folder)
    edit_json(folder / "manifest.json", {"id": id})
    return folder.rename(folder.parent / id)


def refused(folder: Path, base: Base, reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        verify_adapter(folder, base)


@pytest.mark.parametrize("file", ["manifest.json", "adapter_config.json", WEIGHTS_FILE])
def test_a_missing_file_is_refused(adapter: Path, base: Base, file: str) -> None:
    (adapter / file).unlink()
    refused(adapter, base, file)


def test_a_missing_folder_is_refused(tmp_path: Path, base: Base) -> None:
    refused(tmp_path / "a-nowhere", base, "no adapter folder")


@pytest.mark.parametrize("file", ["manifest.json", "adapter_config.json"])
def test_a_broken_json_file_is_refused(adapter: Path, base: Base, file: str) -> None:
    (adapter / file).write_text("{")
    refused(adapter, base, "not JSON")
    (adapter / file).write_text("[]")
    refused(adapter, base, "not a JSON object")


def test_one_flipped_bit_is_refused(adapter: Path, base: Base) -> None:
    file = adapter / WEIGHTS_FILE
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    refused(adapter, base, "hashes to")


def test_another_adapters_name_is_refused(adapter: Path, base: Base) -> None:
    refused(adapter.rename(adapter.parent / "a-0123456789ab"), base, adapter.name)


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = load_base(str(tiny_models.write_model(tmp_path / "other", seed=5)))
    refused(adapter, other, "trained on")


@pytest.mark.parametrize(
    "change",
    [{"r": 8}, {"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"peft_type": "IA3"}],
)
def test_another_kind_of_adapter_is_refused(
    adapter: Path, base: Base, change: dict[str, Any]
) -> None:
    edit_json(adapter / "adapter_config.json", change)
    refused(renamed(adapter), base, "is served")


def test_matrices_that_do_not_fit_are_refused(adapter: Path, base: Base) -> None:
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    edit_weights(adapter, lambda weights: weights.update({key: torch.zeros(7, 16)}))
    refused(renamed(adapter), base, r"\(7, 16\)")


def test_missing_and_foreign_matrices_are_refused(
    adapter: Path, base: Base, tmp_path: Path
) -> None:
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    second = Path(shutil.copytree(adapter, tmp_path / "second"))
    edit_weights(adapter, lambda weights: weights.pop(key))
    refused(renamed(adapter), base, "missing")
    edit_weights(second, lambda weights: weights.update({f"{key}.more": torch.zeros(1)}))
    refused(renamed(second), base, "no module")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(adapter: Path, base: Base, value: float) -> None:
    edit_weights(adapter, lambda weights: weights[next(iter(weights))].view(-1)[3].fill_(value))
    refused(renamed(adapter), base, "NaN or infinity")


def test_a_file_that_is_no_safetensors_is_refused(adapter: Path, base: Base) -> None:
    (adapter / WEIGHTS_FILE).write_bytes(b"\x80\x04pickle")
    refused(renamed(adapter), base, "cannot be read")


@pytest.mark.parametrize("file", ["manifest.json", "adapter_config.json", WEIGHTS_FILE])
def test_a_file_that_the_system_does_not_let_us_read_is_refused(
    adapter: Path, base: Base, file: str
) -> None:
    (adapter / file).unlink()
    (adapter / file).mkdir()  # root may read any file, but nobody a folder as one
    refused(adapter, base, f"cannot be read: {adapter / file}")


def test_a_manifest_that_the_disk_has_no_room_for_is_named(
    adapter: Path, base: Base, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        draft = disk / "draft"
        draft.mkdir()
        shutil.copy(adapter / "adapter_config.json", draft)
        (draft / WEIGHTS_FILE).write_bytes(b"")
        with pytest.raises(OSError, match="No space"):
            (disk / "rest").write_bytes(bytes(64 * 1024))
        with pytest.raises(OSError, match=r"No space left.*manifest\.json"):
            write_manifest(draft, base)
        assert not (draft / "manifest.json").exists()
