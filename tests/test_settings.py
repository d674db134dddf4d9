"""Settings: the file, the environment over it, and nothing unknown anywhere."""

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from feedback.settings import Home, Settings, SettingsError, check_tables


class PlantSettings(Settings):
    table: ClassVar[str] = "plant"
    water: float = 0.5
    names: list[str] = Field(default_factory=list)
    soil: dict[str, Any] = Field(default_factory=dict)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


def test_home_makes_its_folders(home: Home) -> None:
    assert home.snapshots.is_dir() and home.adapters.is_dir() and home.reports.is_dir()
    assert home.db == home.root / "talkback.db"


def test_home_is_found_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKBACK_HOME", str(tmp_path / "there"))
    assert Home.find().root == tmp_path / "there"


def test_a_home_that_cannot_be_made_says_which(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot make the home .*file/home.*TALKBACK_HOME"):
        Home.find(tmp_path / "file" / "home")


def test_without_a_file_the_defaults_hold(home: Home) -> None:
    assert PlantSettings.read(home) == PlantSettings()


def test_the_file_beats_the_default_and_the_environment_the_file(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.toml.write_text("[plant]\nwater = 0.7\nnames = ['fern']\n")
    monkeypatch.setenv("TALKBACK_PLANT_WATER", "0.9")
    settings = PlantSettings.read(home)
    assert (settings.water, settings.names) == (0.9, ["fern"])


def test_the_environment_reaches_into_sub_tables_and_keeps_the_rest(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.toml.write_text("[plant.soil]\nsand = 0.1\nclay = 0.2\n")
    monkeypatch.setenv("TALKBACK_PLANT_SOIL__SAND", "0.3")
    monkeypatch.setenv("TALKBACK_PLANT_SOIL__KIND", "loam")
    assert PlantSettings.read(home).soil == {"sand": 0.3, "clay": 0.2, "kind": "loam"}


def test_settings_made_in_code_do_not_look_at_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TALKBACK_PLANT_WATER", "0.9")
    monkeypatch.setenv("WATER", "0.8")
    assert PlantSettings().water == 0.5


def test_an_unknown_key_is_named_with_its_table_and_the_known_ones(home: Home) -> None:
    home.toml.write_text("[plant]\nwatr = 1\n")
    message = r"unknown key 'watr' in table \[plant\] of .*talkback.toml; known: names, soil, water"
    with pytest.raises(SettingsError, match=message):
        PlantSettings.read(home)


def test_an_unknown_variable_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKBACK_PLANT_WATR", "1")
    with pytest.raises(SettingsError, match=r"unknown key 'watr' in environment TALKBACK_PLANT_"):
        PlantSettings.read(home)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[plant]\nwater = 'much'\n", r"water = 'much' in table \[plant\]"),
        ("plant = 1\n", "'plant' in .* is a value; write it as a table"),
        ("[plant\n", "is not TOML"),
    ],
)
def test_what_cannot_be_read_is_said(home: Home, toml: str, message: str) -> None:
    home.toml.write_text(toml)
    with pytest.raises(SettingsError, match=message):
        PlantSettings.read(home)


def test_a_list_in_the_environment_that_is_not_json_is_an_error(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKBACK_PLANT_NAMES", "fern, moss")
    with pytest.raises(SettingsError, match="lists and tables are JSON"):
        PlantSettings.read(home)


def test_a_table_that_no_stage_reads_is_refused(home: Home) -> None:
    home.toml.write_text("[plnt]\nwater = 1\n")
    with pytest.raises(SettingsError, match=r"unknown table \[plnt\].*known: chat, plant"):
        check_tables(home, ["plant", "chat"])


def test_feedback_starts_without_the_heavy_packages() -> None:
    heavy = ("torch", "transformers", "gradio", "pandas", "datasets", "fastapi")
    code = (
        "import feedback.review.queue, feedback.snapshot, sys, time;"
        f"print([name for name in {heavy!r} if name in sys.modules], time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, seconds = done.stdout.split("] ")
    assert loaded == "[" and float(seconds) < 1.0
