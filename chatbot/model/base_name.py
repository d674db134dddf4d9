"""Names bases so that the name holds in any working folder and any environment.

canonical_name("~/models/mine")   # "/home/ann/models/mine"; a Hub id stays as it is
"""

import os
from pathlib import Path

STARTER_FOLDER = Path(__file__).resolve().parents[1] / "starter"
STARTER_NAME = "talkback-starter"
"""What the starter model is called wherever it is installed."""


def find_folder(name: str) -> Path | None:
    """Return the folder of a base, None when there is none of that name: it may be a Hub id.

    The starter of another installation that is gone is the starter of this one.
    """
    if name == STARTER_NAME:
        return STARTER_FOLDER
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # "~" of a user without a home
        return None
    if folder.is_dir():
        return Path(os.path.abspath(folder))  # a link stays one: its owner may turn it
    return STARTER_FOLDER if folder.parts[-2:] == ("chatbot", "starter") else None


def canonical_name(name: str) -> str:
    """Return the starter's name, a folder's absolute path, or a Hub id as it stands."""
    folder = find_folder(name)
    if folder is None:
        return name
    return STARTER_NAME if folder.resolve() == STARTER_FOLDER else str(folder)


def short_name(name: str) -> str:
    """Return a base's name as people call it: a folder's last part, a Hub id as it stands."""
    return Path(name).name if Path(name).is_absolute() else name


def pinned_revision(name: str, revision: str | None) -> str | None:
    """Return the commit to ask the Hub for: None for a folder, which has no revisions."""
    return None if find_folder(name) else revision
