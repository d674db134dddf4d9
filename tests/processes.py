"""A server in a process of its own, as an operator would run it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import httpx

from feedback.settings import Home

PATIENCE = 120
"""Seconds: a loaded machine imports torch slowly."""

TOML = "[engine]\nworkers = 0\nthreads = 1\nslots = 4\nqueue = 4\n"
"""For services of tests: they run beside other work, and few slots are soon all taken."""


class Server:
    """``python -m chatbot.server`` on a free port of loopback; `url` is known at once."""

    def __init__(self, home: Home, *args: str, **environment: str) -> None:
        self.home = home
        self.log = Path(tempfile.mkstemp(prefix="server-", suffix=".log")[1])
        command = [sys.executable, "-m", "chatbot.server", "--home", str(home.root)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--port", "0", *args],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )
        self.url = self._said(r"Talkback is at (\S+)")

    def ready(self) -> Self:
        """Wait until it can answer."""
        self._said(r"speaks at (\S+),")
        while httpx.get(f"{self.url}/readyz", timeout=60).status_code != 200:
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        """kill -9, as a crash would."""
        self.process.kill()
        self.process.wait()
        self.log.unlink(missing_ok=True)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def ended(self) -> tuple[int, str]:
        """Wait for it to end by itself: exit code, and what it said."""
        return self.process.wait(PATIENCE), self.log.read_text()

    def _said(self, pattern: str) -> str:
        """What it prints there, once it does."""
        due = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.log.read_text())):
            over = self.process.poll() is not None
            assert not over and time.monotonic() < due, self.log.read_text()
            time.sleep(0.05)
        return found[1]
