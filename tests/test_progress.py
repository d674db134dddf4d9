"""Tests what counts as progress: layers and steps do, computing does a little, waiting does not."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatbot.engine import progress
from chatbot.engine.local.local_engine import LocalEngine
from chatbot.engine.progress import BUSY_SHARE, Progress, ProgressWatch, read_activity
from chatbot.engine.protocol import Request, Sampling
from chatbot.engine.settings import EngineSettings
from chatbot.model.base import load_base
from tests.fixtures.waiting import wait_until

SPIN, SLEEP = "while True: pass", "import time; time.sleep(600)"


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run a line of Python in a process of its own; yield its id."""
    code = f"print(flush=True)\n{request.param}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    yield process.pid
    process.kill()
    process.wait()
    process.stdout.close()


def watch_for(seconds: float, watch: ProgressWatch) -> float:
    """Look for so long; return for how long nothing has moved."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        watch.look()
        time.sleep(0.05)
    return watch.still_seconds


def loading() -> Progress:
    """Return the progress of an engine that is being loaded: no thread of it counts yet."""
    return Progress((ctypes.c_int64 * 3)())


@pytest.mark.parametrize("child", [SLEEP], indirect=True)
def test_a_process_that_waits_stands_still_until_something_is_counted(child: int) -> None:
    counted = loading()
    watch = ProgressWatch(counted, child)
    assert watch_for(0.5, watch) > 0.2
    counted.advance()
    assert watch.look() == 0


@pytest.mark.parametrize("child", [SPIN], indirect=True)
def test_computing_is_progress_while_loading_and_a_little_of_it_in_a_step(child: int) -> None:
    watch = ProgressWatch(loading(), child)
    assert watch_for(0.5, watch) == 0, "loading"
    watch = ProgressWatch(Progress((ctypes.c_int64 * 3)(1, child)), child)
    watch.look()
    assert 0 < watch_for(0.5, watch) < 0.2, "one layer may take long"
    os.kill(child, signal.SIGSTOP)
    before = watch.still_seconds
    assert watch_for(0.5, watch) - before > 0.2


BESIDE = """
import threading, time
thread = threading.Thread(target=lambda: time.sleep({pause}) or exec({then!r}), daemon=True)
thread.start()
print(thread.native_id, flush=True)
{meanwhile}
"""


@pytest.mark.parametrize(
    ("pause", "then", "meanwhile", "low", "high"),
    [
        (600, "", SLEEP, 0.2, 0.6),
        (600, "", SPIN, 0.001, 0.1),
        (0, "while True: time.sleep(0.01)", SLEEP, 0, 0),
        (0, SPIN, SLEEP, 0, 0),
    ],
    ids=["hangs", "hangs while others compute", "reads slowly", "computes"],
)
def test_a_thread_that_loads_is_watched_by_itself(
    pause: int, then: str, meanwhile: str, low: float, high: float
) -> None:
    code = BESIDE.format(pause=pause, then=then, meanwhile=meanwhile)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        thread = int(process.stdout.readline())
        counted = Progress((ctypes.c_int64 * 3)(0, process.pid, thread))
        watch = ProgressWatch(counted, process.pid)
        watch.look()
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            counted.advance()  # the engine itself goes on
            watch.look()
            time.sleep(0.05)
        assert low <= watch.loading_still_seconds <= high and watch.still_seconds == 0
        process.kill()


@pytest.mark.parametrize("child", [SPIN], indirect=True)
def test_a_thread_that_a_busy_machine_gives_no_cpu_does_not_stand_still(child: int) -> None:
    activity = read_activity(child)
    assert activity is not None and activity.runnable
    os.kill(child, signal.SIGSTOP)
    wait_until(lambda: not (found := read_activity(child)) or not found.runnable)


@pytest.mark.parametrize("child", [SLEEP], indirect=True)
def test_time_in_which_the_watching_process_was_stopped_does_not_count(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, now = ProgressWatch(loading(), child), time.monotonic()
    watch.look()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now + 3600)
    assert watch.look() <= progress.MAX_GAP_SECONDS


def test_where_the_system_says_nothing_of_threads_only_long_silence_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "read_activity", lambda *_: None)
    silent = Progress((ctypes.c_int64 * 3)(1, 7))
    watch = ProgressWatch(silent, 0)
    watch.look()
    assert 0 < watch_for(0.3, watch) <= 0.4 * BUSY_SHARE


def test_another_process_reads_what_is_counted_here() -> None:
    processes = multiprocessing.get_context("spawn")
    shared = Progress(processes.RawArray(ctypes.c_int64, Progress.CELLS))
    process = processes.Process(target=shared.begin_on_this_thread)
    process.start()
    process.join()
    assert (shared.count, shared.thread_id) == (1, process.pid)


@pytest.mark.parametrize("kind", ["kernels", "torch", "transformers"])
def test_every_layer_of_a_step_is_counted(
    kind: str, tiny_base: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "kernels":
        request.getfixturevalue("torch_only")
    if kind == "transformers":
        monkeypatch.setattr("chatbot.engine.local.runners.select_runner.LLAMA_FAMILY", ())
    base, counted = load_base(str(tiny_base)), Progress()
    engine = LocalEngine(base, EngineSettings(threads=1, chunk=8), progress=counted)
    engine.wait_until_ready()
    before, layers = counted.count, base.model.config.num_hidden_layers
    assert engine.submit(Request([10] * 40, "base", Sampling(max_tokens=1))).wait(30)
    engine.close()
    assert counted.count - before >= 5 * layers, "five chunks"


def test_an_engine_in_this_process_says_that_its_thread_stands_still(tiny_base: Path) -> None:
    engine = LocalEngine(load_base(str(tiny_base)), EngineSettings(threads=1, stall_seconds=2))
    engine.wait_until_ready()
    going_on = threading.Event()
    caller = threading.Thread(target=engine.call_between_steps, args=(going_on.wait,))
    caller.start()
    wait_until(lambda: "stood still" in (engine.unavailable_reason or ""))
    going_on.set()
    wait_until(lambda: engine.unavailable_reason is None)
    caller.join()
    engine.close()
