"""Bases have the same name from everywhere, and are found again where they have moved."""

import json
import shutil
from pathlib import Path

import pytest

from chatbot.known_bases import UnknownBaseError
from chatbot.model.base_name import STARTER_FOLDER, STARTER_NAME, canonical_name, find_folder
from chatbot.service import Service
from feedback.settings import Home
from talkback.cycle import run_cycle
from tests.fixtures.lessons import LESSONS
from tests.fixtures.server_process import SERVER_TOML
from tests.fixtures.shop_corrections import teach


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base in it, which is the working folder and the user's home."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.setenv("HOME", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize("typed", ["mine", "./mine", "~/mine", "../models/mine", "mine/"])
def test_a_folder_has_one_name_however_it_is_typed(models: Path, typed: str) -> None:
    assert canonical_name(typed) == str(models / "mine")
    assert canonical_name(str(models / "mine")) == str(models / "mine")


def test_the_starter_is_known_by_its_name_in_every_environment() -> None:
    other = "/old/env/lib/python3.11/site-packages/chatbot/starter"
    for name in (STARTER_NAME, str(STARTER_FOLDER), other):
        assert canonical_name(name) == STARTER_NAME and find_folder(name) == STARTER_FOLDER
    for name in ("org/model", "gpt2", "/nowhere", "~nobody/mine"):
        assert canonical_name(name) == name and find_folder(name) is None


@pytest.mark.slow
def test_a_base_that_moved_is_found_once_it_was_served_from_its_new_folder(
    home: Home, tiny_base: Path, models: Path
) -> None:
    home.toml.write_text(SERVER_TOML + "[training.sft]\nlerning_rate = 1\n")
    shutil.copytree(tiny_base, models / "mine", dirs_exist_ok=True)
    service = Service.open(home, "mine")
    teach(service, LESSONS)
    adapter = service.registry.adapter(service.speaking)
    service.close()
    assert adapter.base == str(models / "mine")
    (models / "mine").rename(models / "yours")
    with pytest.raises(UnknownBaseError, match=r"there is no folder .*mine.*--base-model FOLDER"):
        run_cycle(home)
    service = Service.open(home, "~/yours")
    assert service.speaking == adapter.id, "the same weights are the same base"
    assert service.registry.locate_base(adapter).name == str(models / "yours")
    service.close()
    row = {"question": "Two and two?", "answer": "Four."}
    (models / "yours" / "replay.jsonl").write_text(json.dumps(row))
    outcome = run_cycle(home)
    assert "lerning_rate" in outcome.detail, "the stage began"
    (snapshot,) = home.snapshots.iterdir()
    assert "Four." in (snapshot / "replay.jsonl").read_text()
