"""Restores homes: never over a running server, never half, and never without the old one."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from feedback.backup import restore, swap
from feedback.backup.archive import write_archive
from feedback.backup.restore import RestoreError, restore_archive
from feedback.cycle_lock import cycle_lock
from feedback.home import in_use
from feedback.home.in_use import HomeInUseError, claim_home, use_home
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.disks import small_disk
from tests.fixtures.full_home import content, fill_home


@pytest.fixture
def full(tmp_path: Path) -> Home:
    return fill_home(tmp_path / "full")


@pytest.fixture
def file(full: Home, tmp_path: Path) -> Path:
    write_archive(full, tmp_path / "talkback.tar")
    return tmp_path / "talkback.tar"


def add_conversation(home: Home, title: str) -> None:
    store = Store(home.db)
    store.start_conversation("zoe", title)
    store.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_home_is_restored_where_none_was_and_where_an_empty_one_was(
    full: Home, file: Path, tmp_path: Path
) -> None:
    restore_archive(file, Home(tmp_path / "new" / "deep" / "home"))
    assert content(tmp_path / "new" / "deep" / "home") == content(full.root)
    empty = Home.find(tmp_path / "empty")
    with claim_home(empty):
        pass
    done = restore_archive(file, empty)
    assert done.aside is None and content(empty.root) == content(full.root)
    assert names(tmp_path) == ["empty", "full", "new", "talkback.tar"]


def test_a_home_that_is_not_empty_is_kept_and_with_replace_moved_aside(
    full: Home, file: Path, tmp_path: Path
) -> None:
    before = content(full.root)
    add_conversation(full, "since")
    newer = content(full.root)
    with pytest.raises(RestoreError, match="not empty; --replace moves it aside"):
        restore_archive(file, full)
    assert content(full.root) == newer
    for _ in range(2):
        done = restore_archive(file, full, replace=True)
        assert content(full.root) == before
        assert done.aside is not None and done.aside.name.startswith("full.replaced-")
    asides = [path for path in tmp_path.iterdir() if ".replaced-" in path.name]
    assert len(asides) == 2 and any(content(path) == newer for path in asides)


@pytest.mark.parametrize("only", [["talkback.toml"], ["adapters/a-1"], ["of-the-future"]])
def test_any_file_of_a_home_makes_it_not_empty(file: Path, tmp_path: Path, only: list[str]) -> None:
    home = Home.find(tmp_path / "other")
    (home.root / only[0]).write_text("mine")
    with pytest.raises(RestoreError, match="not empty"):
        restore_archive(file, home)


def test_a_running_server_and_a_running_cycle_refuse_it(full: Home, file: Path) -> None:
    before = content(full.root)
    with use_home(full), use_home(full), pytest.raises(HomeInUseError, match=r"stop the server"):
        restore_archive(file, full, replace=True)
    with cycle_lock(full), pytest.raises(HomeInUseError, match=r"a cycle runs on .* wait until"):
        restore_archive(file, full, replace=True)
    assert content(full.root) == before
    restore_archive(file, full, replace=True)


def test_a_database_that_somebody_has_open_is_not_moved(full: Home, file: Path) -> None:
    """It would go on with the journal of the database that has the name by then."""
    store = Store(full.db)
    store.start_conversation("zoe", "open")
    before = content(full.root)
    with pytest.raises(RestoreError, match=r"another process has .*talkback.db open"):
        restore_archive(file, full, replace=True)
    assert before.keys() >= content(full.root).keys() - {"talkback.db-wal", "talkback.db-shm"}
    store.close()
    restore_archive(file, full, replace=True)


def test_a_home_whose_database_is_damaged_can_be_replaced(full: Home, file: Path) -> None:
    full.db.write_bytes(b"no database at all" * 1000)
    done = restore_archive(file, full, replace=True)
    assert done.aside is not None and (done.aside / "talkback.db").stat().st_size == 18_000


def test_a_server_does_not_start_on_a_home_that_is_being_restored(
    full: Home, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it hold the lock of the home that was moved aside meanwhile."""
    seen: list[str] = []

    def start_first(first: Path, second: Path) -> None:
        with pytest.raises(HomeInUseError, match="being restored"), use_home(full):
            pass
        seen.append("refused")
        swap.swap_folders(first, second)

    monkeypatch.setattr(restore, "swap_folders", start_first)
    restore_archive(file, full, replace=True)
    assert seen == ["refused"]
    with use_home(full), pytest.raises(HomeInUseError), claim_home(full):
        pass


def test_a_lock_that_was_moved_away_with_its_home_is_not_the_homes(
    full: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server has opened the lock file, and is about to lock it, when a restore swaps the home."""
    lock = in_use.try_lock

    def lock_late(path: Path, *, shared: bool = False) -> object:
        file = lock(path, shared=shared)
        if not (tmp_path / "moved").exists():
            path.rename(tmp_path / "moved")
        return file

    with monkeypatch.context() as late:
        late.setattr(in_use, "try_lock", lock_late)
        held = use_home(full)
        held.__enter__()
    with pytest.raises(HomeInUseError), claim_home(full):
        pass
    held.__exit__(None, None, None)


KILLED = """
import os, signal, sys
from pathlib import Path
from feedback.backup import restore
from feedback.settings import Home

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after(function):
    return lambda *args, **options: (function(*args, **options), die())

if sys.argv[3] == "unpacking":
    restore._unpack_file = die_after(restore._unpack_file)
elif sys.argv[3] == "before the swap":
    restore.swap_folders = die
else:
    restore.swap_folders = die_after(restore.swap_folders)
restore.restore_archive(Path(sys.argv[1]), Home(Path(sys.argv[2])), replace=True)
"""


@pytest.mark.parametrize("when", ["unpacking", "before the swap", "after the swap"])
def test_a_kill_leaves_the_old_home_or_the_new_one_whole(
    full: Home, file: Path, tmp_path: Path, when: str
) -> None:
    archived = content(full.root)
    add_conversation(full, "since")
    old = content(full.root)
    done = subprocess.run([sys.executable, "-c", KILLED, str(file), str(full.root), when])
    assert done.returncode == -signal.SIGKILL
    assert content(full.root) == (archived if when == "after the swap" else old)
    (left,) = (path for path in tmp_path.iterdir() if path.name.startswith(".full-"))
    assert when != "after the swap" or content(left) == old
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    again = restore_archive(file, full, replace=True)
    assert content(full.root) == archived and again.aside is not None


def test_without_an_exchange_of_names_two_renames_swap(
    full: Home, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    monkeypatch.setattr(swap, "_exchange", lambda first, second: errno.EINVAL)
    before = content(full.root)
    done = restore_archive(file, full, replace=True)
    assert done.aside is not None and content(full.root) == before == content(done.aside)
    assert names(tmp_path) == ["full", done.aside.name, "talkback.tar"]


def test_a_home_of_a_group_is_restored_as_one(full: Home, file: Path, tmp_path: Path) -> None:
    full.root.chmod(0o2770)
    full.adapters.chmod(0o2750)
    full.db.chmod(0o660)
    file.unlink()
    write_archive(full, file)
    home = Home(tmp_path / "restored")
    restore_archive(file, home)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (home.root, home.adapters, home.db)]
    assert modes == [0o2770, 0o2750, 0o660]


def test_what_cannot_be_swapped_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("no folder")
    with pytest.raises(RestoreError, match="is a file; name a folder"):
        restore_archive(file, Home(tmp_path / "other"))
    remedy = pytest.raises(RestoreError, match=r"is a mount point.*TALKBACK_HOME=.*disk/home")
    with small_disk(tmp_path / "disk", "1m") as disk, remedy:
        restore_archive(file, Home(disk))


def test_a_full_disk_leaves_the_old_home_and_nothing_beside_it(file: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "800k") as disk:
        home = Home.find(disk / "home")
        add_conversation(home, "mine")
        before = content(home.root)
        with pytest.raises(OSError, match="No space left"):
            restore_archive(file, home, replace=True)
        assert content(home.root) == before and names(disk) == ["home"]
