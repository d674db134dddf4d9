"""Publishing: a folder or a file is there whole, and on the disk, or not at all."""

import os
import stat
from pathlib import Path

import pytest

from feedback.publish import publish_folder, replace_file, try_lock


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


def test_a_folder_is_published_whole_and_readable(draft: Path, tmp_path: Path) -> None:
    final = publish_folder(draft, tmp_path / "final")
    assert final == tmp_path / "final" and not draft.exists()
    assert (final / "weights").read_bytes() == b"1"
    assert (final / "inner" / "config").read_text(encoding="utf-8") == "2"
    assert stat.S_IMODE(final.stat().st_mode) == 0o755


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
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_a_lock_is_had_by_one_and_free_when_it_is_closed(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "lock")
    assert first is not None and try_lock(tmp_path / "lock") is None
    first.close()
    second = try_lock(tmp_path / "lock")
    assert second is not None
    second.close()
