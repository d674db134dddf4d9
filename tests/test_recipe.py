"""Tests how ``[training]`` becomes TRL's configs, and what is refused."""

from pathlib import Path

import pytest

from feedback.settings import Home, SettingsError
from training import dpo, sft
from training.recipe import Recipe


def recipe(tmp_path: Path, toml: str) -> Recipe:
    home = Home.find(tmp_path)
    home.toml.write_text(toml)
    return Recipe.read(home)


def test_trl_tables_go_verbatim_into_trl_configs(tmp_path: Path) -> None:
    found = recipe(
        tmp_path,
        "[training]\nseed = 7\n[training.sft]\nlearning_rate = 0.5\n[training.dpo]\nbeta = 0.3\n",
    )
    assert sft.build_config(found, tmp_path).learning_rate == 0.5
    assert sft.build_config(found, tmp_path).seed == 7
    assert dpo.build_config(found, tmp_path).beta == 0.3


def test_without_a_file_the_defaults_are_the_houses_and_not_those_of_trl(tmp_path: Path) -> None:
    config = dpo.build_config(Recipe.read(Home.find(tmp_path)), tmp_path)
    assert config.learning_rate > 1e-5
    assert not config.precompute_ref_log_probs


def test_steps_are_of_fewer_rows_where_the_base_replays_its_own_answers(tmp_path: Path) -> None:
    sizes = [
        sft.build_config(found, tmp_path, by_base=by_base).per_device_train_batch_size
        for found in (Recipe(), Recipe(sft={"per_device_train_batch_size": 2}))
        for by_base in (False, True)
    ]
    assert sizes == [8, 4, 2, 2]


def test_a_larger_base_learns_at_a_lower_rate_unless_the_recipe_has_one(tmp_path: Path) -> None:
    mine = Recipe(sft={"learning_rate": 3e-3})
    rates = {
        size: [
            sft.build_config(found, tmp_path, parameters=size).learning_rate
            for found in (Recipe(), mine)
        ]
        for size in (135_000_000, 7_000_000_000, 70_000_000_000)
    }
    assert rates == {
        135_000_000: [5e-4, 3e-3],
        7_000_000_000: [2e-4, 3e-3],
        70_000_000_000: [1e-4, 3e-3],
    }


def test_the_environment_sets_a_trl_key_as_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKBACK_TRAINING_SFT__LEARNING_RATE", "0.25")
    assert sft.build_config(recipe(tmp_path, ""), tmp_path).learning_rate == 0.25


@pytest.mark.parametrize("stage", [sft, dpo])
def test_an_unknown_trl_key_is_an_error_that_names_it_and_the_near_one(
    stage: object, tmp_path: Path
) -> None:
    name = "sft" if stage is sft else "dpo"
    found = recipe(tmp_path, f"[training.{name}]\nlearning_rat = 0.5\n")
    with pytest.raises(
        SettingsError, match=rf"'learning_rat' in \[training.{name}\].*learning_rate"
    ):
        (sft if stage is sft else dpo).build_config(found, tmp_path)


def test_a_key_that_the_job_sets_is_refused(tmp_path: Path) -> None:
    found = recipe(tmp_path, "[training.sft]\noutput_dir = 'elsewhere'\n")
    with pytest.raises(SettingsError, match=r"'output_dir'.*set by the job"):
        sft.build_config(found, tmp_path)


def test_a_value_that_trl_refuses_is_an_error_of_the_settings(tmp_path: Path) -> None:
    found = recipe(tmp_path, "[training.sft]\nlr_scheduler_type = 'steep'\n")
    with pytest.raises(SettingsError, match=r"\[training.sft\].*steep"):
        sft.build_config(found, tmp_path)


def test_an_unknown_key_of_the_table_itself_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'lora_rank'"):
        recipe(tmp_path, "[training]\nlora_rank = 8\n")
