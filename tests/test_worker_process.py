"""What a worker's process refuses to load, and that it outlives nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatbot.engine.progress import Progress
from chatbot.engine.protocol import (
    EngineError,
)
from chatbot.engine.settings import EngineSettings
from chatbot.engine.workers import worker_process
from chatbot.engine.workers.messages import WorkerConfig


def test_other_weights_than_the_servers_are_refused(tiny_base: Path) -> None:
    config = WorkerConfig(str(tiny_base), None, "w-other", EngineSettings(threads=1))
    with pytest.raises(EngineError, match="have changed"):
        worker_process._build_engine(config, Progress())


@pytest.mark.parametrize("run", ["work()", "mp.Process(target=work).start()"])
def test_a_worker_that_nobody_wants_keeps_no_process_alive(run: str, tmp_path: Path) -> None:
    code = tmp_path / "begin.py"
    code.write_text(
        "import multiprocessing as mp\n"
        "from chatbot.engine.settings import EngineSettings as S\n"
        "from chatbot.engine.workers.worker_handle import prestart_worker\n"
        "def ignores_sigterm(pid):\n"
        "    status = open(f'/proc/{pid}/status').read()\n"
        "    return int(status.split('SigIgn:')[1].split()[0], 16) >> 14 & 1\n"
        "def work():\n"
        "    pid = prestart_worker(S()).process.pid\n"
        "    while not ignores_sigterm(pid): pass\n"
        "    print(pid, flush=True)\n"
        f"if __name__ == '__main__': {run}\n"
    )
    done = subprocess.run(
        [sys.executable, str(code)],
        capture_output=True,
        timeout=30,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{done.stdout.strip()}").exists()
