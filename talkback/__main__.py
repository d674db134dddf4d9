"""Runs the command line: python -m talkback."""

from talkback.cli import main

main()
