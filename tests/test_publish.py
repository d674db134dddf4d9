"""Publishing: a folder or a file is there whole, and on the disk, or not at all."""

import errno
import fcntl
import os
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chatbot.auth.signing_key import load_signing_key
from feedback.errors import TalkbackError
from feedback.publish import LockError, make_folder, publish_folder, replace_file, try_lock
from feedback.settings import Home
from feedback.store import Store
from tests.fixtures.disks import small_disk


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    folder = tmp_path / ".draft"
    (folder / "inner").mkdir(parents=True)
    folder.chmod(0o700)
    (folder / "weights").write_bytes(b"1")
    (folder / "inner" / "config").write_text("2", encoding="utf-8")
    return folder


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were made durable so far, by the names that they had then."""
    paths: list[str] = []
    sync = os.fsync

    def recorded(handle: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    return paths


def test_a_folder_is_published_whole(draft: Path, tmp_path: Path) -> None:
    final = publish_folder(draft, tmp_path / "final")
    assert final == tmp_path / "final" and not draft.exists()
    assert (final / "weights").read_bytes() == b"1"
    assert (final / "inner" / "config").read_text(encoding="utf-8") == "2"
    assert mode_of(final) == mode_of(tmp_path)


def test_all_is_on_the_disk_before_the_folder_has_its_name_and_the_name_after(
    draft: Path, tmp_path: Path, synced: list[str]
) -> None:
    publish_folder(draft, tmp_path / "final")
    inside = {str(draft / name) for name in ("weights", "inner", "inner/config")}
    assert {*synced[:-1]} == {*inside, str(draft)}
    assert synced[-1] == str(tmp_path)


def test_who_came_first_with_a_folder_stays(draft: Path, tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "weights").write_bytes(b"first")
    assert publish_folder(draft, final) == final
    assert (final / "weights").read_bytes() == b"first" and not draft.exists()


def test_a_folder_that_appears_at_the_last_moment_stays(
    draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "final"
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        final.mkdir()
        (final / "weights").write_bytes(b"first")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert publish_folder(draft, final) == final
    assert (final / "weights").read_bytes() == b"first" and not draft.exists()


def test_a_draft_that_cannot_be_published_stays(draft: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        publish_folder(draft, tmp_path / "nowhere" / "final")
    assert (draft / "weights").exists()


def test_a_file_is_replaced_whole_and_durably(tmp_path: Path, synced: list[str]) -> None:
    file = tmp_path / "report.json"
    for text in ("old", "new \N{GREEK SMALL LETTER ALPHA}"):
        synced.clear()
        replace_file(file, text)
        assert file.read_text(encoding="utf-8") == text
        assert len(synced) == 2 and synced[-1] == str(tmp_path)
    assert mode_of(file) == mode_of(tmp_path) & 0o666
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for shared in (False, True):
        with pytest.raises(LockError, match=rf"cannot lock {tmp_path}/lock: .*; put the home on"):
            try_lock(tmp_path / "lock", shared=shared)


def test_a_lock_is_had_by_one_and_free_when_it_is_closed(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "lock")
    assert first is not None and try_lock(tmp_path / "lock") is None
    first.close()
    second = try_lock(tmp_path / "lock")
    assert second is not None
    second.close()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes(root: Path) -> dict[str, int]:
    """Return the permissions of all that is below ``root``, by name."""
    return {str(path.relative_to(root)): mode_of(path) for path in root.rglob("*")}


@contextmanager
def filled_home(root: Path) -> Iterator[Home]:
    """Make one of everything that a home holds, as serving and learning do; with the store, its
    journals go when the block ends."""
    home = Home.find(root)
    store = Store(home.db)
    store.start_conversation("ann", "When do you open?")
    load_signing_key(home.root)
    for lock in (home.lock, home.root / "webhooks.lock"):
        held = try_lock(lock)
        assert held is not None
        held.close()
    draft = Path(tempfile.mkdtemp(dir=home.adapters))
    (draft / "inner").mkdir()
    (draft / "inner" / "weights").write_bytes(b"1")
    publish_folder(draft, home.adapters / "a-1")
    make_folder(home.reports / "r-1")
    replace_file(home.reports / "r-1" / "report.md", "text")
    yield home
    store.close()


@pytest.fixture
def umask() -> Iterator[Callable[[int], object]]:
    """Return a function that sets the umask, which is as it was after the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize(
    ("made", "folders", "files"),
    [
        (None, 0o700, 0o600),
        (0o700, 0o700, 0o600),
        (0o755, 0o700, 0o600),  # made by mkdir, shared with nobody
        (0o777, 0o700, 0o600),
        (0o2770, 0o2770, 0o660),
        (0o2775, 0o2770, 0o660),
        (0o2750, 0o2750, 0o640),
        (0o770, 0o770, 0o660),
        (0o2710, 0o2710, 0o600),
    ],
)
def test_a_new_home_is_its_owners_and_of_the_group_it_is_shared_with(
    tmp_path: Path,
    umask: Callable[[int], object],
    mask: int,
    made: int | None,
    folders: int,
    files: int,
) -> None:
    root = tmp_path / "home"
    if made is not None:
        root.mkdir()
        root.chmod(made)
    umask(mask)
    with filled_home(root) as home:
        found = modes(root)
    assert len(found) == 14
    wrong = {
        name: oct(mode)
        for name, mode in found.items()
        if mode != (folders if (root / name).is_dir() else files)
    }
    assert wrong == {}
    assert mode_of(root) == (0o700 if made is None else made)
    assert home.exposure() == ""


def test_in_an_old_home_what_others_read_stays_so_and_its_owner_is_told(tmp_path: Path) -> None:
    root = tmp_path / "old home"
    for folder in (root, root / "adapters", root / "reports", root / "snapshots"):
        folder.mkdir()
        folder.chmod(0o755)
    (root / "talkback.db").touch(0o644)
    (root / "talkback.db").chmod(0o644)
    with filled_home(root) as home:
        assert mode_of(root / "talkback.db-wal") == 0o644
    assert mode_of(home.db) == 0o644 and mode_of(root) == 0o755
    assert mode_of(home.adapters / "a-1") == 0o755
    assert mode_of(home.adapters / "a-1" / "inner" / "weights") == 0o644
    assert mode_of(home.reports / "r-1" / "report.md") == 0o644
    remedy = home.exposure().partition("close the home with: ")[2]
    assert str(home.db) in home.exposure() and remedy == f"chmod -R go-rwx '{root}'"
    subprocess.run(shlex.split(remedy), check=True)
    assert home.exposure() == ""
    assert {mode & 0o077 for mode in modes(root).values()} == {0}


def test_only_the_adapters_of_a_home_are_shared_with_a_fleet(tmp_path: Path) -> None:
    home = Home.find(tmp_path / "home")
    home.root.chmod(0o2710)
    home.adapters.chmod(0o2750)
    with filled_home(home.root):
        readable = {name for name, mode in modes(home.root).items() if mode & 0o077}
    weights = {"adapters/a-1", "adapters/a-1/inner", "adapters/a-1/inner/weights"}
    assert readable - {"adapters"} == weights
    assert mode_of(home.adapters / "a-1" / "inner" / "weights") == 0o640


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Make a home that a group owns, which its users reach: tmp_path is closed to them."""
    if os.getuid() != 0:
        pytest.skip("only root can become other users")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        home = Path(folder) / "home"
        home.mkdir()
        os.chown(home, 4001, 4000)
        home.chmod(0o2770)
        yield home


def run_as(user: int, group: int, groups: list[int], work: Callable[[], object]) -> int:
    """Do the work as another user in a process of its own; return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(group)
            os.setuid(user)
            os.umask(0o077)
            work()
        except (OSError, TalkbackError) as error:
            print(error)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_two_users_of_one_group_serve_and_learn_in_one_home(shared_folder: Path) -> None:
    def serve() -> None:
        with filled_home(shared_folder):
            pass

    def learn() -> None:
        home = Home.find(shared_folder)
        store = Store(home.db)
        assert len(store.conversations("ann")) == 1
        store.start_conversation("bob", "When do you close?")
        store.close()
        assert try_lock(home.lock) is not None
        assert (home.adapters / "a-1" / "inner" / "weights").read_bytes() == b"1"
        draft = Path(tempfile.mkdtemp(dir=home.adapters))
        (draft / "weights").write_bytes(b"2")
        publish_folder(draft, home.adapters / "a-2")
        replace_file(home.reports / "r-1" / "report.md", "another text")

    def read_adapter() -> None:
        assert (shared_folder / "adapters" / "a-2" / "weights").read_bytes() == b"2"

    assert run_as(4001, 4001, [4000], serve) == 0
    assert run_as(4002, 4002, [4000], learn) == 0
    assert run_as(4001, 4001, [4000], read_adapter) == 0
    assert run_as(4003, 4003, [4003], read_adapter) == 1  # of no group of ours


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        replace_file(disk / "report.json", "old")
        with pytest.raises(OSError, match="No space left"):
            (disk / "rest").write_bytes(bytes(16 * 1024))
        for text in ("new", "x" * 100_000):
            with pytest.raises(OSError, match=r"No space left.*report.json"):
                replace_file(disk / "report.json", text)
        (disk / "rest").unlink()
        assert [(file.name, file.read_text()) for file in disk.iterdir()] == [
            ("report.json", "old")
        ]


def test_a_damaged_folder_is_moved_aside_by_who_publishes_its_content(
    draft: Path, tmp_path: Path
) -> None:
    def check(folder: Path) -> None:
        if not (folder / "weights").exists():
            raise TalkbackError("no weights")

    final = tmp_path / "final"
    final.mkdir()
    (final / "mine.txt").touch()
    publish_folder(draft, final, check)
    assert (final / "weights").read_bytes() == b"1"
    (aside,) = tmp_path.glob(".damaged-*/final")
    assert [file.name for file in aside.iterdir()] == ["mine.txt"]
