"""Reads files of rows, as JSON lines or one JSON array, and dialogues in all usual shapes.

    read_dialogues(Path("replay.jsonl"))   # [{"messages": [{"role": "user", ...}, ...]}, ...]

A file that cannot be read is an error in one line, with the file, the line and the remedy.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feedback.curation.rows import MessageDict
from feedback.db.well_formed import to_well_formed
from feedback.errors import TalkbackError, describe_os_error

Record = dict[str, Any]

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
}
"""The names that datasets give to who speaks -> ours."""

SHAPES = (
    "a dialogue is messages (role, content), conversations (from, value), prompt and completion, "
    "question and answer, or instruction and output"
)


class RowFileError(TalkbackError):
    """Reports a file of rows, or one of its rows, that cannot be read; names file and line."""


def read_rows(file: Path) -> list[Record]:
    """Return the JSON objects of a file, one a line or in one array; blank lines are skipped."""
    return [row for _, row in _numbered_rows(file)]


def read_dialogues(file: Path) -> list[Record]:
    """Return the dialogues of a file as ``{"messages": [...]}``; each ends in an answer."""
    dialogues = []
    for where, row in _numbered_rows(file):
        try:
            dialogues.append({"messages": parse_dialogue(row)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = error.args[0] if isinstance(error, ValueError) else SHAPES
            raise RowFileError(f"{where}: {why}") from error
    return dialogues


def parse_dialogue(row: Record) -> list[MessageDict]:
    """Return the messages of a row in one of the `SHAPES`.

    Raises ValueError with the reason, KeyError, TypeError or AttributeError for any other row.
    """
    messages = [_parse_message(turn) for turn in _turns(row)]
    if not any(message["role"] == "user" for message in messages[:-1]):
        raise ValueError("a dialogue begins with a user's message and ends in an answer to it")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise ValueError("a dialogue ends in an assistant's answer; write one, or leave it out")
    return messages


def _turns(row: Record) -> list[Any]:
    for key in ("messages", "conversations", "conversation"):
        if key in row:
            return list(row[key])
    if "instruction" in row:
        asked = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
        return _exchange(asked, row["output"])
    if "question" in row:
        return _exchange(row["question"], row["answer"])
    return _exchange(row["prompt"], row["completion"])


def _exchange(asked: Any, answer: Any) -> list[Any]:
    """Return the turns of a question and its answer, each a text or a list of messages."""
    before = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
    return before + after


def _parse_message(turn: Any) -> MessageDict:
    speaker = turn["role"] if "role" in turn else turn["from"]
    content = turn["content"] if "role" in turn else turn["value"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    if speaker not in ROLES:
        raise ValueError(f"{speaker!r} is nobody that Talkback knows; use {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"the content of {speaker!r} is {content!r}, not a text")
    return {"role": ROLES[speaker], "content": to_well_formed(content)}


def _numbered_rows(file: Path) -> Iterator[tuple[str, Record]]:
    """Yield each row of a file, behind where it stands: "rows.jsonl, line 3"."""
    text = _read_text(file)
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parse_json(text, str(file)), 1):
            where = f"{file}, row {number}"
            yield where, _check_row(row, where)
        return
    # Not splitlines: texts may hold U+2028 and others, which end no line of JSON.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, _check_row(_parse_json(line, where), where)


def _read_text(file: Path) -> str:
    try:
        content = file.read_bytes()
        return content.decode(json.detect_encoding(content))
    except OSError as error:
        raise RowFileError(f"cannot read rows: {describe_os_error(error)}") from error
    except UnicodeDecodeError as error:
        if content.startswith((b"\x1f\x8b", b"PK", b"PAR1", b"\x28\xb5\x2f\xfd")):
            raise RowFileError(f"{file} is packed; unpack it to JSON lines") from error
        number = content.count(b"\n", 0, error.start) + 1
        raise RowFileError(f"{file}, line {number} is not UTF-8: save it as UTF-8") from error


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFileError(f"{where} is not JSON: {error}; write one object a line") from error


def _check_row(row: Any, where: str) -> Record:
    if not isinstance(row, dict):
        raise RowFileError(f"{where} is {type(row).__name__}, not an object; write one a line")
    return row
