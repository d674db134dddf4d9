"""The in-process engine: torch on this machine's CPU or GPU."""
