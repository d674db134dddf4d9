"""The processes of stages: in any working folder, and whatever they print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feedback.settings import Home
from talkback.stage import run_stage
from tests.fixtures.command_line import ROOT
from tests.fixtures.server_process import ServerProcess

RUN = """
from talkback.stage import run_stage
run_stage({module!r}, {arguments!r}, threads=1, on_output=lambda line: None)
"""
TALKBACK = str(Path(sys.executable).with_name("talkback"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working folder, in which every name that we import means something else."""
    folder = tmp_path / "mine"
    for package in ("training", "evaluation", "feedback", "chatbot", "datasets", "torch", "trl"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise SystemExit('this is mine')\n")
    for module in ("queue", "random", "tokenize", "typing", "secrets", "statistics", "rich"):
        (folder / f"{module}.py").write_text("raise SystemExit('this is mine')\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("module", ["training.train", "evaluation.compare"])
def test_a_users_working_folder_does_not_hide_a_stage(
    folder: Path, tmp_path: Path, module: str
) -> None:
    arguments = {
        "training.train": ["--snapshot", "/nowhere", "--out", str(tmp_path)],
        "evaluation.compare": [
            *("--candidate", "/nowhere", "--current", "/nowhere", "--out", str(tmp_path)),
            *("--snapshot", "/nowhere"),
        ],
    }[module]
    code = RUN.format(module=module, arguments=arguments)
    process = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment()
    )
    assert "no snapshot at /nowhere" in process.stderr.splitlines()[-1], process.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("command", [[TALKBACK], [sys.executable, "-m", "talkback"]])
def test_a_users_working_folder_does_not_hide_the_command_line(
    folder: Path, home: Home, command: list[str]
) -> None:
    command = [*command, "status", "--home", str(home.root)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert process.returncode == 0 and "waiting for review" in process.stdout, process.stderr


@pytest.mark.slow
def test_a_users_working_folder_does_not_hide_a_servers_workers(
    folder: Path, home: Home, tiny_base: Path
) -> None:
    home.toml.write_text("[engine]\nworkers = 1\nthreads = 1\n")
    server = ServerProcess(home, "--base-model", str(tiny_base), command=(TALKBACK, "serve"))
    try:
        server.ready()
    finally:
        server.kill()


def test_the_result_is_found_though_a_library_prints_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "chatty.py").write_text(r"""print('{"id": 1}\n"[/]"\n3\n\x1b[0m leaked')""")
    lines: list[str] = []
    assert run_stage("chatty", [], threads=1, on_output=lines.append) == {"id": 1}
    assert len(lines) == 4
