"""Backs homes up while they are used: whole, verified, and with all that was acknowledged."""

import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from feedback.backup import archive, contents
from feedback.backup.archive import BackupError, write_archive
from feedback.backup.restore import restore_archive
from feedback.db.database_copy import copy_database
from feedback.home.in_use import HomeInUseError, claim_home
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.command_line import run_talkback
from tests.fixtures.disks import small_disk
from tests.fixtures.full_home import ADAPTER, add_adapter, content, fill_home
from tests.fixtures.kill_server import FeedbackServer
from tests.fixtures.waiting import wait_until

WRITER = """
import sys, time
from pathlib import Path
from feedback.store import Store

store, end = Store(Path(sys.argv[1])), time.monotonic() + 4
print("writing", flush=True)
while time.monotonic() < end:
    store.start_conversation("zoe", "still writing")
"""


@pytest.fixture
def full(tmp_path: Path) -> Home:
    return fill_home(tmp_path / "full")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "talkback.tar"


def restored(file: Path) -> Home:
    """Restore an archive to a home of its own."""
    home = Home(file.with_name("restored"))
    restore_archive(file, home)
    return home


def test_a_round_trip_keeps_every_file_with_its_permissions(full: Home, file: Path) -> None:
    full.reports.chmod(0o750)
    full.toml.chmod(0o640)
    before = content(full.root)
    manifest = write_archive(full, file)
    assert content(full.root) == before == content(restored(file).root)
    assert "of-the-future/deep/deeper/new kind.bin" in manifest.files
    assert {"browser.key", "talkback.toml", "talkback.db"} <= manifest.files.keys()


def test_an_archive_is_its_owners_alone_and_nothing_is_left_beside_it(
    full: Home, file: Path
) -> None:
    before = os.umask(0)
    try:
        write_archive(full, file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["full", "talkback.tar"]


def test_locks_drafts_and_what_processes_say_of_themselves_stay_out(full: Home, file: Path) -> None:
    for name in (".lesson-x", ".damaged-1", "x.partial"):
        (full.adapters / name).mkdir()
        (full.adapters / name / "weights").write_text("half")
    for name in ("engine.json", "cycle.json", "cycle.lock", "browser.key.77.ab", "talkback.db-wal"):
        (full.root / name).write_text("")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(full.root / "socket"))
        manifest = write_archive(full, file)
    top = {name for name in manifest.files if "/" not in name}
    assert top == {"talkback.db", "talkback.toml", "browser.key"}
    adapters = {name for name in manifest.folders if name.startswith("adapters/")}
    assert adapters == {f"adapters/{ADAPTER}"}


def test_links_are_backed_up_as_what_they_lead_to_and_circles_end(
    full: Home, file: Path, tmp_path: Path
) -> None:
    shutil.copytree(full.adapters / ADAPTER, tmp_path / "elsewhere")
    (full.adapters / "linked").symlink_to(tmp_path / "elsewhere")
    (full.adapters / ADAPTER / "circle").symlink_to(full.adapters / ADAPTER)
    write_archive(full, file)
    home = restored(file)
    assert not (home.adapters / "linked").is_symlink()
    assert (home.adapters / "linked" / "manifest.json").exists()


def test_a_folder_that_disappears_is_left_out_whole_and_one_that_appears_is_whole(
    full: Home, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter is being removed while it is listed and opened, and another one is published."""
    store = Store(full.db)
    gone = add_adapter(full, store, "a-00000000000a")
    store.close()
    (gone / "manifest.json").unlink()
    open_regular = contents._open_regular

    def open_late(path: Path) -> object:
        opened = open_regular(path)
        if path.parent == gone:
            shutil.rmtree(gone)
            shutil.copytree(full.adapters / ADAPTER, full.adapters / "a-00000000000b")
        return opened

    monkeypatch.setattr(contents, "_open_regular", open_late)
    names = write_archive(full, file).folders
    assert f"adapters/{ADAPTER}" in names and "adapters/a-00000000000a" not in names
    assert all((folder / "manifest.json").exists() for folder in restored(file).adapters.iterdir())


def test_a_folder_that_disappears_between_listing_and_opening_is_left_out(
    full: Home, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk, gone = contents._walk, full.reports / "rep-1"

    def walk_early(root: Path, path: str, above: tuple[str, ...] = ()) -> list[tuple[str, bool]]:
        found = walk(root, path, above)
        if path == "reports/rep-1":
            shutil.rmtree(gone)
        return found

    monkeypatch.setattr(contents, "_walk", walk_early)
    assert "reports/rep-1" not in write_archive(full, file).folders


def test_a_copy_of_the_database_ends_although_others_go_on_writing(
    full: Home, tmp_path: Path
) -> None:
    """A copy in steps would begin again at each write of another connection."""
    store = Store(full.db)
    with store.write():
        for _ in range(300):
            store.start_conversation("ann" * 20_000, "Hello?")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(full.db)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
    copy_database(full.db, tmp_path / "copy.db")
    assert writer.poll() is None, "the copy ended when the writes did"
    writer.kill()
    writer.communicate()
    store.close()


def test_every_adapter_that_a_row_names_is_in_the_archive_with_its_folder(
    full: Home, file: Path
) -> None:
    """A cycle goes on publishing and registering adapters during the backups."""
    stop, made = threading.Event(), [ADAPTER]

    def publish() -> None:
        store = Store(full.db)
        while not stop.is_set():
            made.append(add_adapter(full, store, f"a-{len(made):012x}0").name)
        store.close()

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        for round in range(4):
            wait_until(lambda due=10 * (round + 1): len(made) >= due)
            archive = file.with_name(f"{round}.tar")
            names = write_archive(full, archive).files.keys()
            home = Home(archive.with_suffix(""))
            restore_archive(archive, home)
            store = Store(home.db)
            ids = [row["id"] for row in store.rows("select id from adapter")]
            store.close()
            assert len(ids) >= 10 * (round + 1) - 1
            assert all(f"adapters/{id}/manifest.json" in names for id in ids)
    finally:
        stop.set()
        publisher.join()


def test_a_file_that_grows_is_kept_as_it_was_when_it_was_opened(
    full: Home, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = full.root / "server.log"
    log.write_text("first\n")
    add = archive._add_file

    def add_late(*args: object) -> object:
        with log.open("a") as stream:
            stream.write("later\n" * 1000)
        return add(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(archive, "_add_file", add_late)
    write_archive(full, file)
    assert (restored(file).root / "server.log").read_text().startswith("first\n")


def test_all_that_was_acknowledged_before_is_in_the_archive_of_a_server_under_writes(
    full: Home, file: Path
) -> None:
    import httpx

    store = Store(full.db)
    message = store.rows("select id from message where role = 'assistant'")[0]["id"]
    server, acknowledged, stop = FeedbackServer(full), [], threading.Event()

    def write(number: int) -> None:
        body = {"message_id": message, "kind": "comment", "text": f"from {number}"}
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while not stop.is_set():
                done = client.post("/v1/feedback", json=body).raise_for_status()
                acknowledged.append(done.json()["feedback_id"])

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    try:
        for round in range(3):
            wait_until(lambda due=40 * (round + 1): len(acknowledged) >= due)
            before, path = list(acknowledged), file.with_name(f"{round}.tar")
            write_archive(full, path)
            assert len(acknowledged) > len(before), "the server stood still"
            home = Home(path.with_suffix(""))
            restore_archive(path, home)
            copy = Store(home.db)
            kept = {row["id"] for row in copy.rows("select id from feedback")}
            assert set(before) <= kept
            assert copy.row("pragma integrity_check")[0] == "ok"
            copy.close()
    finally:
        stop.set()
        for writer in writers:
            writer.join()
        server.kill()
        store.close()


def exists(home: Home, file: Path) -> Path:
    file.write_text("mine")
    return file


def in_the_home(home: Home, file: Path) -> Path:
    return home.root / "talkback.tar"


def in_no_folder(home: Home, file: Path) -> Path:
    return file.parent / "no" / "talkback.tar"


def damaged(home: Home, file: Path) -> Path:
    data = bytearray(home.db.read_bytes())
    data[8192:65536] = bytes(65536 - 8192)
    home.db.write_bytes(data)
    return file


def newer(home: Home, file: Path) -> Path:
    with sqlite3.connect(home.db) as connection:
        connection.execute("pragma user_version = 99")
    connection.close()
    return file


def empty(home: Home, file: Path) -> Path:
    shutil.rmtree(home.root)
    return file


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (exists, "exists and is kept; name another"),
        (in_the_home, "is in the home .* name a file elsewhere"),
        (in_no_folder, "there is no folder .*make it"),
        (damaged, "talkback.db.* restore an earlier archive|cannot copy"),
        (newer, "schema 99.*newer Talkback"),
        (empty, "has no talkback.db.*name a home"),
    ],
)
def test_what_cannot_be_backed_up_is_one_clear_line_and_leaves_nothing(
    full: Home, file: Path, spoil: Callable[[Home, Path], Path], message: str
) -> None:
    target = spoil(full, file)
    with pytest.raises(BackupError, match=message):
        write_archive(full, target)
    assert {path.name for path in file.parent.iterdir()} <= {"full", "talkback.tar"}
    assert spoil is not exists or file.read_text() == "mine"


def test_a_full_disk_leaves_no_half_of_an_archive(full: Home, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "500k") as disk:
        with pytest.raises((OSError, BackupError), match=r"No space left|full"):
            write_archive(full, disk / "talkback.tar")
        assert list(disk.iterdir()) == []


def test_a_home_that_is_being_restored_is_not_backed_up(full: Home, file: Path) -> None:
    with claim_home(full), pytest.raises(HomeInUseError, match="being restored"):
        write_archive(full, file)


def test_the_commands_say_what_they_did_and_what_the_archive_holds(full: Home, file: Path) -> None:
    saved = run_talkback(full, "backup", str(file))
    assert saved.returncode == 0 and "schema" in saved.stdout, saved.stderr
    back = run_talkback(full, "restore", str(file), "--replace")
    assert back.returncode == 0, back.stderr
    for done in (saved, back):
        assert "what people wrote" in done.stderr and "signs" in done.stderr
    aside = next(path for path in file.parent.iterdir() if ".replaced-" in path.name)
    assert f"is now {aside}." in back.stdout
    assert (
        "conversations 2, messages 4, ratings 1, corrections 2, adapters 1; "
        f"in service: {ADAPTER}" in back.stdout
    )
    again = run_talkback(full, "restore", str(file))
    assert again.returncode == 2 and "--replace" in again.stderr
    assert again.stderr.count("\n") == 1
    missing = run_talkback(full, "restore", str(file.with_name("no.tar")))
    assert missing.returncode == 2 and "no.tar" in missing.stderr


def test_an_archive_is_a_tar_that_tar_can_list(full: Home, file: Path) -> None:
    write_archive(full, file)
    with tarfile.open(file) as tar:
        names = tar.getnames()
        assert names[0] == "home/talkback.db" and names[-1] == "manifest.json"
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert manifest["files"]["browser.key"]["size"] == 32
