"""Defines what the commands share: the option that names the home, and the last line of a help."""

from pathlib import Path
from typing import Annotated

import typer

from feedback.home.local_disk import check_local_disk
from feedback.settings import Home, check_tables

TABLES = (
    "chat",
    "curate",
    "cycle",
    "embedder",
    "engine",
    "evaluation",
    "gate",
    "server",
    "storage",
    "training",
    "webhooks",
)
"""All tables of talkback.toml; each is declared beside the code that reads it."""

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="TALKBACK_HOME", help="Where all state lives. Default: ~/.talkback"
    ),
]


def example_line(text: str) -> str:
    """Return the last line of a command's help: an example that can be copied and run."""
    return f"Example: [bold]{text}[/bold]"


def find_home(home: Path | None) -> Home:
    """Return the home; SettingsError when its talkback.toml has a table that nothing reads,
    DiskError where its database would not be safe."""
    found = Home.find(home)
    check_tables(found, TABLES)
    check_local_disk(found)
    return found
