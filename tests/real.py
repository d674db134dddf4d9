"""Real conversations and real edits, where they lie beside the repository; else tests skip.

A folder ``data`` beside it, or TALKBACK_TEST_DATA, may hold ``jfleg_edits`` (learners' sentences,
each corrected by four people) and ``chatterbot_english`` (small dialogues). They are never copied.
"""

import os
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

_BESIDE = Path(__file__).resolve().parents[2]


def folder(name: str) -> Path:
    """The folder of a data set; skips the test where there is none."""
    named = os.environ.get("TALKBACK_TEST_DATA")
    places = [Path(named) / name] if named else []
    for place in chain(places, sorted(_BESIDE.glob(f"*/data/{name}"))):
        if place.is_dir():
            return place
    pytest.skip(f"{name} is not here; name its folder's parent in TALKBACK_TEST_DATA")


def dialogues(limit: int) -> list[list[str]]:
    """Dialogues of at least two turns, the person's first."""
    yaml: Any = pytest.importorskip("yaml")
    found: list[list[str]] = []
    for file in sorted(folder("chatterbot_english").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            texts = [str(turn).strip() for turn in turns]
            if len(texts) >= 2 and all(texts):
                found.append(texts[: len(texts) // 2 * 2])
    return found[:: max(1, len(found) // limit)][:limit]


def edits(limit: int) -> list[tuple[str, list[str]]]:
    """(sentence, its corrections by four people)."""
    place = folder("jfleg_edits")
    read = [
        (place / f"dev_dev.{name}").read_text(encoding="utf-8").splitlines()
        for name in ("src", "ref0", "ref1", "ref2", "ref3")
    ]
    return [
        (line.strip(), [text.strip() for text in texts])
        for line, *texts in list(zip(*read, strict=True))[:limit]
    ]
