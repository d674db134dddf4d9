"""Runs the commands that save a home and bring it back: backup, restore, downgrade."""

from pathlib import Path
from typing import Annotated

import typer

from chatbot.registry import Registry
from feedback.backup.archive import write_archive
from feedback.backup.downgrade import downgrade as downgrade_home
from feedback.backup.manifest import Manifest
from feedback.backup.restore import restore_archive
from feedback.settings import Home
from feedback.store import Store
from talkback.command_options import HomeOption, find_home
from talkback.output import console, stderr

SECRECY = (
    "It holds what people wrote, and the key that signs their tokens: keep it as you keep the home."
)


def backup(
    file: Annotated[Path, typer.Argument(help="The archive to make, outside of the home.")],
    home: HomeOption = None,
) -> None:
    """Save the whole home as one verified archive, while the server runs."""
    root = Home.locate(home)
    with stderr.status("copying the home"):
        manifest = write_archive(root, file)
    _print(f"{file}: {describe_archive(manifest)}, of {root.root}.")
    stderr.print(SECRECY, soft_wrap=True)


def restore(
    file: Annotated[Path, typer.Argument(help="An archive that `talkback backup` has made.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Move a home that is not empty aside.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Bring a home back from an archive that is verified first; no server may run on it."""
    root = Home.locate(home)
    with stderr.status("verifying and unpacking"):
        restored = restore_archive(file, root, replace=replace)
    _print(f"{root.root} is restored: {describe_archive(restored.manifest)}.")
    if restored.aside is not None:
        _print(f"The home that was there is now {restored.aside}.")
    _print(describe_content(find_home(root.root)))
    stderr.print(f"About {file}: {SECRECY}", soft_wrap=True)


def downgrade(home: HomeOption = None) -> None:
    """Put the database back as it was before its last migration, for the Talkback before."""
    done = downgrade_home(Home.locate(home))
    rows = ", ".join(f"{table} {count}" for table, count in done.left_out.items())
    needed = f" (Talkback {done.version})" if done.version else ""
    _print(f"The database has schema {done.schema} again, as before its last migration.")
    _print(f"Rows written since, which it leaves out: {rows or 'none'}.")
    _print(f"The newer database, with all rows, is now {done.aside}.")
    _print(
        f"Start the Talkback{needed} that made schema {done.schema}; this one would migrate again."
    )


def _print(line: str) -> None:
    """Print a line unbroken, for its paths."""
    console.print(line, soft_wrap=True)


def describe_archive(manifest: Manifest) -> str:
    """Return what an archive holds, in a line."""
    size = sum(file.size for file in manifest.files.values())
    return (
        f"{len(manifest.files)} files, {size / 1e6:.1f} MB, schema {manifest.schema_version}, "
        f"Talkback {manifest.talkback}, {manifest.created_at}, verified"
    )


def describe_content(home: Home) -> str:
    """Return what a home's database holds, and which adapter speaks, in a line."""
    store = Store(home.db)
    counts, promotion = store.counts(), Registry(store, home).promotion()
    store.close()
    return (
        f"conversations {counts['conversations']}, messages {counts['messages']}, "
        f"ratings {counts['thumbs']}, corrections {counts['edits'] + counts['corrections']}, "
        f"adapters {counts['adapters']}; "
        f"in service: {promotion.adapter if promotion else 'no adapter yet'}"
    )
