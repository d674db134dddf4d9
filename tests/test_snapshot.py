"""Snapshots: what is in the folder, that it names itself, and that it is whole or not there."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feedback.curation.curate import Curation, Row
from feedback.snapshot import FILES, Snapshot, SnapshotError, partition_outdated, write_snapshot
from tests.fixtures.disks import small_disk

USER = [{"role": "user", "content": "Open?"}]
ROW = Row("sft", USER, "From 9.", "Never.", "msg-1", ["rev-1", "fb-1"], ["ann"], "c-1")
PAIR = replace(ROW, kind="pair")
HELD = replace(ROW, side="held_out", cluster="c-2", people=["bob"], sources=["rev-2"])
RIGHT = replace(ROW, rejected=None, chosen="Yes.")
CURATION = Curation([ROW, PAIR, HELD, replace(HELD, kind="pair"), RIGHT], [])
REPLAY = [{"messages": [*USER, {"role": "assistant", "content": "Hi."}], "topic": "hello"}]


def test_each_row_goes_into_its_file(tmp_path: Path) -> None:
    snapshot = write_snapshot(CURATION, tmp_path, REPLAY)
    sft = {"prompt": USER, "completion": [{"role": "assistant", "content": "From 9."}], "weight": 1}
    right = {**sft, "completion": [{"role": "assistant", "content": "Yes."}]}
    pair = {
        "prompt": USER,
        "chosen": [{"role": "assistant", "content": "From 9."}],
        "rejected": [{"role": "assistant", "content": "Never."}],
    }
    assert snapshot.rows("sft") == [sft, right]
    assert snapshot.rows("dpo") == snapshot.rows("held_out_pairs") == [pair]
    repair = {**sft, "rejected": "Never."}
    assert snapshot.rows("repairs") == [repair, right]  # whatever trains is asked afterwards
    assert snapshot.rows("held_out") == [repair]
    assert snapshot.rows("replay") == [
        {"prompt": USER, "completion": [{"role": "assistant", "content": "Hi."}], "weight": 1}
    ]


def test_the_manifest_says_what_is_inside_and_where_it_comes_from(tmp_path: Path) -> None:
    snapshot = write_snapshot(CURATION, tmp_path)
    assert snapshot.folder == tmp_path / snapshot.id and snapshot.id == f"s-{snapshot.hash[:12]}"
    assert snapshot.counts == {
        "sft": 2,
        "dpo": 1,
        "replay": 0,
        "repairs": 2,
        "held_out": 1,
        "held_out_pairs": 1,
    }
    assert (snapshot.people, snapshot.sources) == (["ann", "bob"], ["fb-1", "rev-1", "rev-2"])
    manifest = json.loads((snapshot.folder / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert [one["message_id"] for one in manifest["lineage"]] == ["msg-1"] * 5
    assert Snapshot.read(snapshot.folder) == snapshot


def test_the_same_content_is_the_same_snapshot(tmp_path: Path) -> None:
    first = write_snapshot(CURATION, tmp_path)
    assert write_snapshot(CURATION, tmp_path) == first
    assert write_snapshot(CURATION, tmp_path / "elsewhere").id == first.id
    assert write_snapshot(Curation([ROW], []), tmp_path).id != first.id
    assert write_snapshot(CURATION, tmp_path, REPLAY).id != first.id


def test_nothing_but_whole_snapshots_is_left_behind(tmp_path: Path) -> None:
    write_snapshot(CURATION, tmp_path)
    write_snapshot(CURATION, tmp_path)
    with pytest.raises(KeyError):
        write_snapshot(CURATION, tmp_path, [{"no": "dialogue"}])
    (folder,) = tmp_path.iterdir()
    assert {file.name for file in folder.iterdir()} == {
        "manifest.json",
        *(f"{name}.jsonl" for name in FILES),
    }


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        long = replace(ROW, chosen="word " * 10_000)
        with pytest.raises(OSError, match=r"No space left.*\.snapshot-.*jsonl"):
            write_snapshot(Curation([long], []), disk)
        assert not list(disk.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_noticed(tmp_path: Path, name: str) -> None:
    folder = write_snapshot(CURATION, tmp_path).folder
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(SnapshotError, match="have changed: their hash is"):
        Snapshot.read(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = write_snapshot(CURATION, tmp_path).folder
    (folder / "dpo.jsonl").unlink()
    with pytest.raises(SnapshotError, match=r"incomplete: .*dpo\.jsonl"):
        Snapshot.read(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no snapshot at"), ("{", "is not JSON"), ('{"format": 2}', "has format 2")],
)
def test_a_folder_that_is_no_snapshot_is_refused(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SnapshotError, match=message):
        Snapshot.read(tmp_path)


def test_an_empty_curation_is_a_snapshot_too(tmp_path: Path) -> None:
    assert sum(write_snapshot(Curation([], []), tmp_path).counts.values()) == 0


def dialogue(question: str, answer: str) -> dict[str, Any]:
    turns = [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def test_rows_whose_answer_was_corrected_are_outdated() -> None:
    old, other = dialogue("Open?", "We are open from 9 am to 6 pm."), dialogue("Ship?", "For £4.")
    kept, dropped = partition_outdated([old, other], ["we are open from 9 am to 6 pm"])
    assert (kept, dropped) == ([other], [old])
    assert partition_outdated([old, other], ["", "For £5 within 3 days."]) == ([old, other], [])


def test_rows_as_a_snapshot_holds_them_are_judged_too() -> None:
    row = {"prompt": USER, "completion": [{"role": "assistant", "content": "From 9."}]}
    assert partition_outdated([row], ["From 9"]) == ([], [row])


def test_nearly_the_same_long_answer_is_outdated() -> None:
    text = "You can return anything unused within thirty days of delivery, by post or in a shop."
    kept, dropped = partition_outdated([dialogue("Returns?", text + " Thanks!")], [text])
    assert kept == [] and len(dropped) == 1


def test_not_knowing_is_never_outdated() -> None:
    """One "I don't know" was wrong; it stays right for all the other questions it answers."""
    shop = Path(__file__).parents[1] / "training" / "starter" / "shop.toml"
    topics = tomllib.loads(shop.read_text(encoding="utf-8"))["topics"]
    unlike = [topic["questions"].strip().splitlines()[0] for topic in topics.values()][:40]
    honest = [dialogue(question, "I'm sorry, I don't know that.") for question in unlike]
    hours = topics["opening_hours"]["questions"].strip().splitlines() * 2
    alike = [dialogue(question, "From 9 to 6.") for question in hours]
    kept, dropped = partition_outdated(
        [*honest, *alike], ["I'm sorry, I don't know that.", "From 9 to 6."]
    )
    assert (kept, dropped) == (honest, alike)
