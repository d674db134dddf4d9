"""Trains tiny models by DPO for real: where it begins, what it teaches and what it takes back."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from chatbot.model.base import Base, load_base
from feedback.snapshot import Snapshot
from tests.fixtures import tiny_models
from tests.fixtures.recall import FAST, manifest, spoken
from tests.fixtures.snapshots import CORRECTIONS, curated_row, write_corrections
from training import dpo
from training.callbacks import TrainingError
from training.recipe import Recipe
from training.train import train_adapter

ALL_PAIRS = FAST.model_copy(update={"learnt_pairs": True})


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.write_model(tmp_path_factory.mktemp("base") / "base"))


@pytest.fixture
def base(base_folder: str) -> Base:
    return load_base(base_folder)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return write_corrections(tmp_path_factory.mktemp("snapshot"))


def test_pairs_whose_chosen_answer_sft_has_taught_are_left_out(
    tmp_path: Path, base_folder: str
) -> None:
    asked = {"Which answer was chosen?": "This one, by two people."}
    more = [curated_row(*pair, kind="pair") for pair in asked.items()]
    snapshot = write_corrections(tmp_path, more=more)
    adapter = train_adapter(snapshot.folder, base_folder, None, tmp_path / "adapters", FAST)
    metrics = manifest(adapter)["metrics"]["dpo"]
    assert metrics["learnt"] == len(CORRECTIONS) and metrics["rows"] == len(asked)


def test_where_sft_has_taught_all_that_was_chosen_dpo_has_nothing_to_do(
    tmp_path: Path, base_folder: str, snapshot: Snapshot
) -> None:
    lines: list[str] = []
    adapter = train_adapter(
        snapshot.folder, base_folder, None, tmp_path / "adapters", FAST, lines.append
    )
    expected = {"learnt": len(CORRECTIONS), "steps": 0, "kept": True}
    assert manifest(adapter)["metrics"]["dpo"] == expected
    assert f"dpo: SFT has taught what was chosen in all {len(CORRECTIONS)} pairs" in lines


def test_dpo_starts_from_what_sft_left_with_margin_zero_and_loss_ln_2(
    tmp_path: Path, base_folder: str, snapshot: Snapshot
) -> None:
    recipe = ALL_PAIRS.model_copy(update={"dpo": {"loss_type": ["sigmoid"], "loss_weights": [1.0]}})
    found = manifest(train_adapter(snapshot.folder, base_folder, None, tmp_path, recipe))
    assert found["metrics"]["dpo"]["first_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert found["metrics"]["dpo"]["first_margin"] == pytest.approx(0, abs=1e-3)


def test_a_reference_that_is_not_the_start_is_noticed(tmp_path: Path) -> None:
    args = dpo.build_config(Recipe(), tmp_path)
    with pytest.raises(TrainingError, match="at step 0 the margin is 2"):
        dpo.check_initial_margin({"rewards/margins": 2.0, "loss": 0.0}, args)


def test_dpo_widens_the_margin_between_chosen_and_rejected(
    tmp_path: Path, base_folder: str, snapshot: Snapshot
) -> None:
    recipe = ALL_PAIRS.model_copy(update={"dpo": {"num_train_epochs": 8, "learning_rate": 1e-4}})
    found = manifest(
        train_adapter(snapshot.folder, base_folder, None, tmp_path / "adapters", recipe)
    )
    assert found["metrics"]["dpo"]["last_margin"] > found["metrics"]["dpo"]["first_margin"]
    assert found["metrics"]["dpo"]["kept"]


@pytest.mark.slow
def test_dpo_that_undoes_what_sft_taught_is_taken_back(
    tmp_path: Path, base: Base, base_folder: str, snapshot: Snapshot
) -> None:
    wild = {"learning_rate": 0.05, "num_train_epochs": 4, "max_grad_norm": 100.0}
    recipe = ALL_PAIRS.model_copy(update={"dpo": wild})
    adapter = train_adapter(snapshot.folder, base_folder, None, tmp_path / "adapters", recipe)
    assert not manifest(adapter)["metrics"]["dpo"]["kept"]
    assert all(spoken(base, adapter, CORRECTIONS))


@pytest.mark.parametrize(
    "fault, reason",
    [({"max_length": 8}, "every row is longer than"), ({"learning_rate": 1e9}, "dpo: .* is nan")],
)
def test_dpo_that_fails_costs_nothing_of_what_sft_taught(
    fault: dict[str, Any],
    reason: str,
    tmp_path: Path,
    base: Base,
    base_folder: str,
    snapshot: Snapshot,
) -> None:
    wild = {"max_grad_norm": 0.0, "num_train_epochs": 4}
    recipe = ALL_PAIRS.model_copy(update={"dpo": wild | fault})
    adapter = train_adapter(snapshot.folder, base_folder, None, tmp_path, recipe)
    assert re.search(reason, manifest(adapter)["metrics"]["dpo"]["failed"])
    assert all(spoken(base, adapter, CORRECTIONS))


@pytest.mark.slow
def test_dpo_begins_at_margin_zero_on_a_real_base_in_bfloat16(
    tmp_path: Path, real_model: Path
) -> None:
    snapshot = write_corrections(tmp_path)
    recipe = Recipe(sft={"num_train_epochs": 2}, dpo={"per_device_train_batch_size": 3})
    metrics = manifest(train_adapter(snapshot.folder, str(real_model), None, tmp_path, recipe))[
        "metrics"
    ]
    assert metrics["dpo"]["first_margin"] == 0 and metrics["dpo"]["steps"] > 1


def test_pairs_alone_train_by_dpo_from_the_base(tmp_path: Path, base_folder: str) -> None:
    pairs = [curated_row(*pair, kind="pair") for pair in CORRECTIONS.items()]
    snapshot = write_corrections(tmp_path, {}, more=pairs)
    eager = Recipe(threads=1, dpo={"learning_rate": 1e-3, "num_train_epochs": 5})
    metrics = manifest(
        train_adapter(snapshot.folder, base_folder, None, tmp_path / "adapters", eager)
    )
    assert set(metrics["metrics"]) == {"dpo", "seconds"}
    assert metrics["metrics"]["dpo"]["last_margin"] > 0
