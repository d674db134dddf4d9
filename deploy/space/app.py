"""Starts a Space: the server on port 7860, and a cycle beside it every half hour.

A Space has no cron, so the cycle is started from here, in a process of its own.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
"""Our packages lie here, not installed: ``python -m`` finds them in its working folder."""


def state_folder() -> Path:
    """Return the state's folder: as set, else on the mounted volume, else beside this file."""
    configured = os.environ.get("TALKBACK_HOME")
    if configured:
        return Path(configured)
    volume = Path("/data")
    root = volume if os.access(volume, os.W_OK) else HERE / "home"
    return root / "talkback"


def run_cycles(minutes: float) -> None:
    """Run a cycle every so many minutes, for ever; its outcome goes to the Space's log."""
    while True:
        time.sleep(minutes * 60)
        subprocess.run([sys.executable, "-m", "talkback", "cycle"], check=False, cwd=HERE)


def main() -> None:
    """Serve until the platform stops us."""
    os.environ["TALKBACK_HOME"] = str(state_folder())
    # Only the platform's proxy reaches a Space; unless it is believed, all visitors count as one.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
    minutes = float(os.environ.get("SPACE_CYCLE_MINUTES", "").strip() or "30")
    if minutes > 0:
        threading.Thread(target=run_cycles, args=(minutes,), daemon=True).start()
    base = os.environ.get("TALKBACK_BASE_MODEL")
    sys.argv[1:] = ["serve", "--host", "0.0.0.0", "--port", "7860"]
    sys.argv += ["--base-model", base] if base else []
    from talkback.cli import main as talkback  # after the environment is set: torch reads it once

    talkback()


if __name__ == "__main__":
    main()
