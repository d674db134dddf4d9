"""Writes and reads snapshots: what one cycle learns from, as a folder named by its content.

    write_snapshot(curate(store), home.snapshots)
    # snapshots/s-1f0c…/{sft,dpo,…}.jsonl, manifest.json

The same rows give the same id. Training and evaluation read the folder and nothing else.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from feedback.curation.curate import Curation
from feedback.curation.outdated import partition_outdated as partition_outdated
from feedback.curation.row_files import Record as Record
from feedback.curation.row_files import read_rows
from feedback.curation.rows import MessageDict, Row
from feedback.errors import TalkbackError, describe_os_error, name_file
from feedback.ids import now
from feedback.publish import make_folder, publish_folder

FORMAT = 1
FILES = ("sft", "dpo", "replay", "repairs", "held_out", "held_out_pairs")


class SnapshotError(TalkbackError):
    """Reports a snapshot that is not what its manifest says; names the folder and what differs."""


@dataclass(frozen=True)
class Snapshot:
    """Holds a snapshot's folder and its manifest."""

    folder: Path
    id: str
    hash: str
    counts: dict[str, int]
    sources: list[str]
    people: list[str]
    created_at: str

    @classmethod
    def read(cls, folder: Path) -> "Snapshot":
        """Read the snapshot in a folder; raise SnapshotError unless it matches its manifest."""
        manifest = _manifest(folder)
        if manifest.get("format") != FORMAT:
            raise SnapshotError(
                f"{folder} has format {manifest.get('format')!r}, this Talkback reads {FORMAT}; "
                "make a new snapshot"
            )
        try:
            found = _hash(folder)
            snapshot = cls(folder, **{key: manifest[key] for key in _MANIFEST})
        except OSError as error:
            raise SnapshotError(f"{folder} is incomplete: {describe_os_error(error)}") from error
        except KeyError as error:
            raise SnapshotError(f"{folder}/manifest.json lacks {error}; make a new one") from error
        if found != snapshot.hash:
            raise SnapshotError(
                f"the files in {folder} have changed: their hash is {found[:12]}…, the manifest "
                f"says {snapshot.hash[:12]}…; make a new snapshot"
            )
        return snapshot

    def rows(self, name: str) -> list[Record]:
        """Return the rows of one of its files: "sft", "dpo", "held_out", ..."""
        return read_rows(self.folder / f"{name}.jsonl")


_MANIFEST = ("id", "hash", "counts", "sources", "people", "created_at")


def write_snapshot(curation: Curation, out: Path, replay: Sequence[Record] = ()) -> Snapshot:
    """Write the snapshot into ``out/<id>``: there whole or not at all, and once only.

    ``replay`` are the base's own dialogues (``{"messages": [...]}``) to train along with the rows;
    of one that is marked ``by_base`` the answer is what the base itself says there.
    """
    rows = curation.rows
    make_folder(out)
    draft = Path(tempfile.mkdtemp(prefix=".snapshot-", dir=out))
    try:
        contents = _contents(rows, replay)
        for name, records in contents.items():
            _write_lines(draft / f"{name}.jsonl", map(_to_json, records))
        digest = _hash(draft)
        folder = out / f"s-{digest[:12]}"
        manifest = {
            "id": folder.name,
            "hash": digest,
            "counts": {name: len(records) for name, records in contents.items()},
            "sources": sorted({id for row in rows for id in row.sources}),
            "people": sorted({person for row in rows for person in row.people}),
            "created_at": now(),
            "format": FORMAT,
            "lineage": _lineage(rows),
        }
        _write_lines(draft / "manifest.json", [json.dumps(manifest, ensure_ascii=False, indent=1)])
        return Snapshot.read(publish_folder(draft, folder, Snapshot.read))
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _contents(rows: Sequence[Row], replay: Sequence[Record]) -> dict[str, list[Record]]:
    train = [row for row in rows if row.side == "train"]
    held_out = [row for row in rows if row.side == "held_out"]
    return {
        "sft": [_sft(row) for row in train if row.kind == "sft"],
        "dpo": [_pair(row) for row in train if row.kind == "pair"],
        "replay": [_replay(record) for record in replay],
        "repairs": [_repair(row) for row in train if row.kind == "sft"],
        "held_out": [_repair(row) for row in held_out if row.kind == "sft"],
        "held_out_pairs": [_pair(row) for row in held_out if row.kind == "pair"],
    }


def _lineage(rows: Sequence[Row]) -> list[Record]:
    """Return which answer and feedback each row comes from, in the order of the rows."""
    return [
        {
            "kind": row.kind,
            "side": row.side,
            "cluster": row.cluster,
            "message_id": row.message_id,
            "sources": row.sources,
            "people": row.people,
        }
        for row in rows
    ]


def _sft(row: Row) -> Record:
    return {"prompt": row.prompt, "completion": _answer(row.chosen), "weight": 1, **_thought(row)}


def _repair(row: Row) -> Record:
    """Return what to answer, and the answer that was wrong, if there was one."""
    return _sft(row) | ({} if row.rejected is None else {"rejected": row.rejected})


def _pair(row: Row) -> Record:
    chosen, rejected = _answer(row.chosen), _answer(row.rejected or "")
    return {"prompt": row.prompt, "chosen": chosen, "rejected": rejected, **_thought(row)}


def _thought(row: Row) -> Record:
    return {} if row.thought is None else {"thought": row.thought}


def _replay(record: Record) -> Record:
    messages = _messages(record)
    by_base = {"by_base": True} if record.get("by_base") else {}
    return {"prompt": messages[:-1], "completion": messages[-1:], "weight": 1, **by_base}


def _answer(text: str) -> list[MessageDict]:
    return [{"role": "assistant", "content": text}]


def _messages(record: Record) -> list[MessageDict]:
    """Return all messages of a dialogue, given whole or as prompt and completion."""
    if "messages" in record:
        return list(record["messages"])
    return [*record["prompt"], *record["completion"]]


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    except OSError as error:
        raise name_file(error, path) from error


def _to_json(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False)


def _hash(folder: Path) -> str:
    """Return the SHA-256 over the content of the row files, each behind its name and length."""
    digest = hashlib.sha256()
    for name in FILES:
        content = (folder / f"{name}.jsonl").read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _manifest(folder: Path) -> Record:
    try:
        manifest: Record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SnapshotError(f"no snapshot at {folder}: it has no manifest.json") from error
    except OSError as error:
        raise SnapshotError(f"cannot read a snapshot: {describe_os_error(error)}") from error
    except ValueError as error:
        raise SnapshotError(f"{folder}/manifest.json is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise SnapshotError(f"{folder}/manifest.json is not a JSON object; make a new snapshot")
    return manifest
