"""The environment as containers give it: each command line in a process with just that."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.fixtures.command_line import ROOT

UID = 54321
"""A user without an entry in passwd, as containers of Kubernetes and OpenShift run."""

KUBERNETES = {
    "TALKBACK_SERVER_PORT": "tcp://10.0.0.7:8000",
    "TALKBACK_SERVER_PORT_8000_TCP": "tcp://10.0.0.7:8000",
    "TALKBACK_SERVER_PORT_8000_TCP_ADDR": "10.0.0.7",
    "TALKBACK_SERVER_PORT_8000_TCP_PORT": "8000",
    "TALKBACK_SERVER_PORT_8000_TCP_PROTO": "tcp",
    "TALKBACK_SERVER_SERVICE_HOST": "10.0.0.7",
    "TALKBACK_SERVER_SERVICE_PORT": "8000",
    "TALKBACK_SERVER_SERVICE_PORT_HTTP": "8000",
    "TALKBACK_CYCLE_PORT": "udp://10.0.0.8:53",
    "TALKBACK_PORT": "tcp://10.0.0.9:80",
}
EMPTY = dict.fromkeys(
    ("TALKBACK_CYCLE_MIN_NEW", "TALKBACK_SERVER_PORT", "TALKBACK_SERVER_REVIEW_TOKEN"), ""
)
SHOW = """
from chatbot.server import ServerSettings
from feedback.settings import Home
from talkback.cycle import CycleSettings
home = Home.find()
server = ServerSettings.read(home)
print(server.port, server.review_token or "-", CycleSettings.read(home).min_new)
"""


@cache
def nameless_user() -> list[str]:
    """Return the command that runs another as a user without a name, nothing where none can."""
    command = ["unshare", "--user", f"--map-user={UID}"]
    if shutil.which("unshare") and subprocess.run([*command, "true"]).returncode == 0:
        return command
    return []


def run(folder: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user without a name, with no variable but these and no terminal."""
    return subprocess.run(
        [*nameless_user(), sys.executable, *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env={"TALKBACK_HOME": str(folder / "home")} | environment,
        umask=0o077,
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "8000 - 5"),
        (KUBERNETES, "8000 - 5"),
        (EMPTY, "8000 - 5"),
        ({"TALKBACK_SERVER_PORT": " 8080\n"}, "8080 - 5"),
        ({"TALKBACK_SERVER_REVIEW_TOKEN": "secret\n"}, "8000 secret 5"),
        ({"TALKBACK_SERVER_REVIEW_TOKEN": "secret\r\n", "HOME": ""}, "8000 secret 5"),
        ({"HOME": "/nonexistent", "TMPDIR": "/tmp", "LC_ALL": "C"}, "8000 - 5"),
    ],
)
def test_settings_are_read_in_a_container(
    tmp_path: Path, environment: dict[str, str], expected: str
) -> None:
    done = run(tmp_path, "-c", SHOW, **environment)
    assert done.stdout == expected + "\n", done.stderr


@pytest.mark.parametrize(
    "toml", ["[server]\nport = 9\n", "\ufeff[server]\nport = 9\n", "[server]\r\nport = 9\r\n"]
)
def test_a_toml_is_read_as_editors_write_it(tmp_path: Path, toml: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "talkback.toml").write_bytes(toml.encode())
    assert run(tmp_path, "-c", SHOW).stdout == "9 - 5\n"


def test_a_user_without_a_name_decides_and_sees_the_status(tmp_path: Path) -> None:
    assert run(tmp_path, "-m", "talkback", "status").returncode == 0
    refused = run(tmp_path, "-m", "talkback", "rollback")
    assert "no earlier adapter" in refused.stderr


def test_without_any_home_folder_the_remedy_is_named(tmp_path: Path) -> None:
    if not nameless_user():
        pytest.skip("no user without a name here")
    done = run(tmp_path, "-m", "talkback", "status", TALKBACK_HOME="")
    assert done.returncode == 2 and "TALKBACK_HOME" in done.stderr
    assert "Traceback" not in done.stderr
