"""Runs the command line: python -m talkback."""

import os
import sys

# `-m` puts the working folder first, where a user's `datasets/` or `queue.py` would hide others.
if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]

from talkback.cli import main

main()
