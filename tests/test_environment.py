"""The environment as containers give it: each command line in a process with just that."""

import os
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


NO_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
int flock(int file, int operation) { errno = ENOLCK; return -1; }
#define REFUSE(name)                                                         \\
    int name(int file, int command, ...) {                                   \\
        va_list list;                                                        \\
        va_start(list, command);                                             \\
        void *argument = va_arg(list, void *);                               \\
        va_end(list);                                                        \\
        if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) { \\
            errno = ENOLCK;                                                  \\
            return -1;                                                       \\
        }                                                                    \\
        int (*real)(int, int, ...) = dlsym(RTLD_NEXT, #name);                \\
        return real(file, command, argument);                                \\
    }
REFUSE(fcntl)
REFUSE(fcntl64)
"""
"""What a program gets of a file system without locks, such as NFS without its lock daemon."""


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment in which no file can be locked."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "no_locks.c").write_text(NO_LOCKS)
    shim = folder / "no_locks.so"
    command = [compiler, "-shared", "-fPIC", "-o", shim, folder / "no_locks.c", "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return {"LD_PRELOAD": str(shim)}


@pytest.mark.parametrize(
    "command", ["status", "cycle", pytest.param("serve", marks=pytest.mark.slow)]
)
def test_a_file_system_without_locks_is_one_line_with_the_remedy(
    tmp_path: Path, no_locks: dict[str, str], command: str
) -> None:
    done = run(tmp_path, "-m", "talkback", command, TALKBACK_SERVER_PORT="0", **no_locks)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "home") in line
    assert "No locks available; put the home on a file system that has locks" in line


@pytest.mark.parametrize(
    "command", ["status", "cycle", pytest.param("serve", marks=pytest.mark.slow)]
)
def test_a_small_limit_of_file_sizes_is_one_line_and_nothing_is_lost(
    tmp_path: Path, command: str
) -> None:
    limited = "import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (65536,) * 2)"
    code = f"{limited}; sys.argv = ['talkback', {command!r}]; runpy.run_module('talkback')"
    done = run(tmp_path, "-c", code, TALKBACK_SERVER_PORT="0")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert "talkback.db" in line and "ulimit -f" in line
    assert run(tmp_path, "-m", "talkback", "status").returncode == 0


@pytest.mark.slow
def test_a_user_without_name_and_home_serves(tmp_path: Path) -> None:
    environment = {"TALKBACK_HOME": str(tmp_path / "home"), "PATH": os.defpath}
    command = [*nameless_user(), sys.executable, "-m", "talkback", "serve", "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "speaks at" in line:
                break
        process.terminate()
        assert process.wait(60) == 0
    assert "speaks at" in printed[-1] and "Traceback" not in "".join(printed)
