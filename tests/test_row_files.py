"""Files of rows that others have written: read in every usual shape, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from feedback.curation.row_files import RowFileError, read_dialogues, read_rows

ROW = {"messages": [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Ten."}]}
LINE = json.dumps(ROW)


@pytest.mark.parametrize(
    "content",
    [
        LINE.encode(),
        f"{LINE}\n".encode(),
        f"\ufeff{LINE}\n".encode(),
        f"{LINE}\n\n  \n\t\n".encode(),
        f"\n\n{LINE}\r\n\r\n".encode(),
        f"{LINE}\n".encode("utf-16"),
        f"[{LINE}]".encode(),
        b"\xef\xbb\xbf" + json.dumps([ROW], indent=2).encode(),
    ],
)
def test_ordinary_json_lines_are_read(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    assert read_dialogues(file) == [ROW]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_what_unicode_takes_for_a_line_break_ends_no_line(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "rows.jsonl"
    raw = separator if separator > "\x1f" else json.dumps(separator)[1:-1]
    file.write_text(f'{{"a": "x{raw}y"}}\n{{"a": "z"}}\n', encoding="utf-8")
    assert read_rows(file) == [{"a": f"x{separator}y"}, {"a": "z"}]


def turns(**roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in roles.items()]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            turns(user="a", assistant="b"),
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "user", "value": "a"},
                    {"from": "assistant", "value": "b"},
                ]
            },
            turns(system="s", user="a", assistant="b"),
        ),
        ({"prompt": "a", "completion": "b"}, turns(user="a", assistant="b")),
        (
            {"prompt": turns(system="s", user="a"), "completion": turns(assistant="b")},
            turns(system="s", user="a", assistant="b"),
        ),
        ({"question": "a\ud83d", "answer": "b\0"}, turns(user="a\ufffd", assistant="b\ufffd")),
        ({"question": "a", "answer": "b"}, turns(user="a", assistant="b")),
        ({"instruction": "a", "input": "", "output": "b"}, turns(user="a", assistant="b")),
        ({"instruction": "a", "input": "i", "output": "b"}, turns(user="a\n\ni", assistant="b")),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    {"role": "assistant", "content": "b", "weight": 1},
                ]
            },
            turns(user="a", assistant="b"),
        ),
    ],
)
def test_dialogues_of_every_usual_shape_are_read(
    tmp_path: Path, row: Any, expected: list[dict[str, str]]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    assert read_dialogues(file) == [{"messages": expected}]


REFUSED: list[tuple[bytes, str]] = [
    (b"{", "line 2 is not JSON"),
    (LINE.encode() + b",", "line 2 is not JSON"),
    (b"[" * 100_000, "line 2 is not JSON"),
    (b"[1]", "line 2 is list, not an object"),
    (b"null", "line 2 is NoneType, not an object"),
    (b'{"a": "\xff"}', "line 2 is not UTF-8"),
    (b"{}", "line 2: a dialogue is messages"),
    (b'{"messages": null}', "line 2: a dialogue is messages"),
    (b'{"messages": ["a", "b"]}', "line 2: a dialogue is messages"),
    (b'{"text": "a"}', "line 2: a dialogue is messages"),
    (b'{"messages": []}', "line 2: a dialogue begins with a user's"),
    (b'{"question": "a", "answer": ""}', "line 2: a dialogue ends in an assistant's answer"),
    (b'{"question": "a", "answer": null}', "line 2: a dialogue is messages"),
    (b'{"messages": [{"role": "assistant", "content": "a"}]}', "begins with a user's message"),
    (b'{"conversations": [{"from": "narrator", "value": "a"}]}', "'narrator' is nobody"),
    (b'{"messages": [{"role": ["user"], "content": "a"}]}', "line 2: a dialogue is messages"),
    (b'{"messages": [{"role": "user", "content": null}]}', "is None, not a text"),
    (b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "a dialogue is messages"),
]


@pytest.mark.parametrize(("line", "why"), REFUSED)
def test_any_other_row_is_one_line_with_file_and_line(
    tmp_path: Path, line: bytes, why: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(LINE.encode() + b"\n" + line)
    with pytest.raises(RowFileError) as refused:
        read_dialogues(file)
    assert str(file) in str(refused.value) and why in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08\0", b"PK\x03\x04\xff", b"\x28\xb5\x2f\xfd"])
def test_a_packed_file_is_to_be_unpacked(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(RowFileError, match=r"rows.jsonl.gz.*unpack it"):
        read_rows(file)


def test_a_folder_or_a_missing_file_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.jsonl"):
        with pytest.raises(RowFileError, match=str(path)):
            read_rows(path)
