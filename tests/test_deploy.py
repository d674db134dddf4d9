"""Starts the deployments the way their platforms start them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fixtures.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
UID = 1000
"""A Space runs as this user, who may write nothing but its home."""


def assemble(out: Path) -> Path:
    script = ROOT / "deploy" / "space" / "assemble.py"
    subprocess.run([sys.executable, script, out], check=True)
    return out


def test_a_space_has_its_packages_and_what_they_need(tmp_path: Path) -> None:
    space = assemble(tmp_path / "space")
    front = (space / "README.md").read_text().split("---")[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (space / "requirements.txt").read_text().splitlines() == project["dependencies"]
    assert (space / str(re.search(r"app_file: (\S+)", front)[1])).is_file()  # type: ignore[index]
    assert (space / "chatbot" / "starter" / "model.safetensors").is_file()
    assert not [*space.rglob("__pycache__")]
    for kernels in (ROOT / "chatbot").rglob("*.so"):
        assert (space / kernels.relative_to(ROOT)).is_file()
    gradio = next(line for line in project["dependencies"] if line.startswith("gradio"))
    pinned = re.search(r"sdk_version: (\d+\.\d+)", front)
    assert pinned and f">={pinned[1]}" in gradio


@pytest.fixture
def space() -> Iterator[Path]:
    """A Space in a home that its user owns: outside tmp_path, which is root's alone."""
    home = Path("/tmp") / f"talkback-space-{os.getpid()}"
    home.mkdir(mode=0o755)
    yield home
    shutil.rmtree(home)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_space_starts_as_the_platform_starts_it(space: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    app = assemble(space / "app")
    python = clean_venv(space / "venv", app / "requirements.txt")
    for path in [space, *space.rglob("*")]:
        if "venv" not in path.parts:
            os.chown(path, UID, UID)
    environment = {"PATH": os.environ["PATH"], "HOME": str(space), "SYSTEM": "spaces"}
    with (space / "log").open("w") as log:
        server = subprocess.Popen(
            [python, "app.py"],
            cwd=app,
            env=environment,
            stdout=log,
            stderr=log,
            user=UID,
            group=UID,
            extra_groups=[],
        )
    try:
        wait_until(lambda: ready(server, space / "log"), seconds=120)
        page = httpx.get("http://127.0.0.1:7860/", timeout=30)
        assert page.status_code == 200 and "gradio" in page.text
        body = {"messages": [{"role": "user", "content": "What are your opening hours?"}]}
        response = httpx.post("http://127.0.0.1:7860/v1/chat/completions", json=body, timeout=60)
        assert "9 am" in response.json()["choices"][0]["message"]["content"]
        assert "review page's token is" in (space / "log").read_text()
    finally:
        server.terminate()
        assert server.wait(30) == 0


def ready(server: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert server.poll() is None, log.read_text()
    try:
        return httpx.get("http://127.0.0.1:7860/readyz").status_code == 200
    except httpx.TransportError:
        return False


def clean_venv(folder: Path, requirements: Path) -> Path:
    """A venv with nothing but the requirements, in the versions of the constraints."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, "-r", requirements], check=True)
    return python


def test_cron_and_systemd_call_commands_that_exist() -> None:
    commands = []
    for file in (ROOT / "deploy" / "cron").iterdir():
        commands += re.findall(
            r"/\.venv/bin/talkback (\w+)(.*?)(?: >>.*)?$", file.read_text(), re.M
        )
    assert {command for command, _ in commands} == {"serve", "cycle"}
    for command, options in commands:
        shown = subprocess.run(
            [sys.executable, "-m", "talkback", command, "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        ).stdout
        assert all(option in shown for option in re.findall(r"--[\w-]+", options))


def test_units_that_cannot_see_a_home_folder_keep_models_in_their_own() -> None:
    folder = ROOT / "deploy" / "cron"
    units = [file.read_text() for file in folder.glob("*.service")]
    assert len(units) == 2 and all("ProtectHome=true" in unit for unit in units)
    for text in (*units, (folder / "crontab").read_text()):
        settings = dict(re.findall(r"^(?:Environment=)?(\w+)=(/.*)$", text, re.M))
        assert settings["HF_HOME"].startswith(f"{settings['TALKBACK_HOME']}/")
    for unit in units:
        assert "StateDirectory=talkback" in unit and "TALKBACK_HOME=/var/lib/talkback" in unit
