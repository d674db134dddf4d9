"""The cycle that runs: one at a time, seen by everybody, and gone with its process."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from chatbot.service import Service
from feedback.cycle_lock import cycle_lock, read_running_cycle
from feedback.settings import Home
from tests.fixtures.command_line import run_talkback

HOLDER = """
import sys
from pathlib import Path
from feedback.cycle_lock import cycle_lock
from feedback.settings import Home

with cycle_lock(Home(Path(sys.argv[1]))) as lock:
    lock.enter_stage("train")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def training(api_service: Service) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the cycle lock of the served home, as a cycle that trains does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(api_service.home.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_running_cycle_is_in_status_and_over_http_and_gone_when_it_is_killed(
    api_service: Service, http: httpx.Client, training: "subprocess.Popen[str]"
) -> None:
    home = api_service.home
    running = json.loads(run_talkback(home, "status", "--json").stdout)["running cycle"]
    assert running["stage"] == "train" and running["started_at"] <= running["stage_started_at"]
    assert f"stage train, stage started at {running['stage_started_at'][:4]}" in " ".join(
        run_talkback(home, "status").stdout.split()
    )
    assert http.get("/v1/adapters").json()["running_cycle"] == running
    training.kill()
    training.wait()
    assert json.loads(run_talkback(home, "status", "--json").stdout)["running cycle"] is None
    assert http.get("/v1/adapters").json()["running_cycle"] is None


def test_a_cycle_that_ends_is_running_no_more(home: Home) -> None:
    assert read_running_cycle(home) is None
    with cycle_lock(home) as lock:
        running = read_running_cycle(home)
        assert lock is not None and running is not None and running.stage == "start"
        with cycle_lock(home) as second:
            assert second is None
    assert read_running_cycle(home) is None


def test_who_looks_never_keeps_a_cycle_from_its_lock(home: Home) -> None:
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            read_running_cycle(home)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(30):
            with cycle_lock(home) as lock:
                assert lock is not None
    finally:
        stop.set()
        for looker in lookers:
            looker.join()
