"""Refuses archives that are damaged, cut or made by somebody else, and names what is wrong."""

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from feedback.backup.archive import write_archive
from feedback.backup.manifest import ArchiveError, verify
from feedback.backup.restore import restore_archive
from feedback.settings import Home
from tests.fixtures.full_home import content, fill_home

Members = list[tuple[tarfile.TarInfo, bytes]]
Change = Callable[[Members, dict[str, object]], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of a full home."""
    folder = tmp_path_factory.mktemp("whole")
    write_archive(fill_home(folder / "full"), folder / "talkback.tar")
    return folder / "talkback.tar"


def refused(archive: Path, home: Home) -> str:
    """Return why an archive is refused; nothing of the home has been touched then."""
    existed = home.root.exists()
    before = content(home.root) if existed else {}
    with pytest.raises(ArchiveError) as error:
        restore_archive(archive, home, replace=True)
    assert home.root.exists() == existed and (not existed or content(home.root) == before)
    beside = {path.name for path in home.root.parent.iterdir()}
    assert beside <= {"home", archive.name}, beside
    assert str(archive) in str(error.value)
    return str(error.value)


def rewrite(
    whole: Path, target: Path, change: Callable[[Members, dict[str, object]], None]
) -> Path:
    """Write the archive anew with other members, under a manifest that is whole in itself."""
    with tarfile.open(whole) as tar:
        members = [(info, b"" if info.isdir() else tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    info, data = members.pop()
    manifest = json.loads(data)
    change(members, manifest)
    data = json.dumps(manifest).encode()
    info.size, info.pax_headers = len(data), {"TALKBACK.sha256": hashlib.sha256(data).hexdigest()}
    with tarfile.open(target, "w") as tar:
        for member, text in [*members, (info, data)]:
            tar.addfile(member, io.BytesIO(text))
    return target


def member(
    name: str, type: bytes = tarfile.REGTYPE, link: str = "", **headers: str
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.pax_headers = headers
    info.type, info.linkname, info.mode = type, link, 0o600
    return info


def test_rewritten_as_it_was_it_is_restored(whole: Path, tmp_path: Path, home: Home) -> None:
    archive = rewrite(whole, tmp_path / "a.tar", lambda members, manifest: None)
    restore_archive(archive, home)
    assert (home.root / "browser.key").exists()


@pytest.mark.parametrize(
    "path", ["talkback.db", "browser.key", "adapters/a-000000000001/adapter_model.safetensors"]
)
def test_a_byte_that_has_flipped_names_its_file(
    whole: Path, tmp_path: Path, home: Home, path: str
) -> None:
    with tarfile.open(whole) as tar:
        offset = tar.getmember(f"home/{path}").offset_data
    data = bytearray(whole.read_bytes())
    data[offset + 20] ^= 1
    archive = tmp_path / "a.tar"
    archive.write_bytes(data)
    assert f"{path} in it is damaged" in refused(archive, home)


@pytest.mark.parametrize("text", [b'"mode": ', b'"created_at": "'])
def test_a_byte_of_the_manifest_that_has_flipped_is_found(
    whole: Path, tmp_path: Path, home: Home, text: bytes
) -> None:
    """Also where the manifest stays JSON and names the same files."""
    data = bytearray(whole.read_bytes())
    data[data.rindex(text) + len(text)] ^= 1
    archive = tmp_path / "a.tar"
    archive.write_bytes(data)
    assert "manifest.json is damaged" in refused(archive, home)


def test_any_byte_that_flips_is_found_or_changes_nothing(whole: Path, tmp_path: Path) -> None:
    """Some bytes of a tar say nothing: what fills its blocks, owners, times."""
    data, rng, archive = whole.read_bytes(), random.Random(0), tmp_path / "a.tar"
    with whole.open("rb") as stream:
        manifest = verify(stream, whole)
    found = 0
    for _ in range(150):
        spoilt = bytearray(data)
        spoilt[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        archive.write_bytes(spoilt)
        with archive.open("rb") as stream:
            try:
                assert verify(stream, archive) == manifest
            except ArchiveError:
                found += 1
    assert found > 100


def test_an_archive_that_is_cut_anywhere_names_where(
    whole: Path, tmp_path: Path, home: Home
) -> None:
    data, archive = whole.read_bytes(), tmp_path / "a.tar"
    with tarfile.open(whole) as tar:
        manifest = tar.getmember("manifest.json")
    for size in [0, 1, 511, 512, 700, *range(5000, manifest.offset_data, 37_777)]:
        archive.write_bytes(data[:size])
        assert "cut or damaged" in refused(archive, home)
    archive.write_bytes(data[: manifest.offset_data + 5])
    refused(archive, home)
    archive.write_bytes(data[:100_000])
    assert "talkback.db" in refused(archive, home)


def test_what_is_no_archive_is_named(tmp_path: Path, home: Home) -> None:
    archive = tmp_path / "a.tar"
    archive.write_text("no archive at all\n" * 1000)
    assert "cut or damaged" in refused(archive, home)


FOREIGN = {
    "a file that is not in the manifest": member("home/adapters/evil.py"),
    "an absolute path": member("/etc/cron.d/evil"),
    "an absolute path in the home": member("home//etc/evil"),
    "a path that leads out": member("home/../../evil"),
    "a path that leads out and is no folder of its own": member("home/.."),
    "a name without the home": member("evil"),
    "the home itself": member("home", tarfile.DIRTYPE),
    "a symbolic link": member("home/link", tarfile.SYMTYPE, "/etc"),
    "a hard link": member("home/link", tarfile.LNKTYPE, "home/browser.key"),
    "a device": member("home/device", tarfile.CHRTYPE),
    "a file with holes": member(
        "home/holes", **{"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**15)}
    ),
    "a pipe": member("home/pipe", tarfile.FIFOTYPE),
    "a folder that is not in the manifest": member("home/evil", tarfile.DIRTYPE),
    "a file twice": member("home/browser.key"),
}


@pytest.mark.parametrize(
    ("what", "named"),
    [(what, False) for what in FOREIGN]
    + [(what, True) for what in FOREIGN if "not in the manifest" not in what],
)
def test_members_that_do_not_belong_are_refused(
    whole: Path, tmp_path: Path, home: Home, what: str, named: bool
) -> None:
    """Also where somebody has put them into the manifest."""
    info = FOREIGN[what]

    def change(members: Members, manifest: dict[str, object]) -> None:
        members.append((info, b""))
        if named:
            name = info.name.removeprefix("home/")
            files: dict[str, object] = manifest["files"]  # type: ignore[assignment]
            files[name] = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest(), "mode": 384}

    archive = rewrite(whole, tmp_path / "a.tar", change)
    assert info.name.removeprefix("home/") in refused(archive, home)
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()


def test_a_file_that_is_missing_is_named(whole: Path, tmp_path: Path, home: Home) -> None:
    def drop(members: Members, manifest: dict[str, object]) -> None:
        members[:] = [one for one in members if one[0].name != "home/browser.key"]

    archive = rewrite(whole, tmp_path / "a.tar", drop)
    assert "browser.key is missing" in refused(archive, home)


def test_a_file_in_no_folder_is_refused(whole: Path, tmp_path: Path, home: Home) -> None:
    def move(members: Members, manifest: dict[str, object]) -> None:
        members.append((member("home/browser.key/inner"), b""))
        files: dict[str, object] = manifest["files"]  # type: ignore[assignment]
        empty = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest(), "mode": 384}
        files["browser.key/inner"] = empty

    archive = rewrite(whole, tmp_path / "a.tar", move)
    assert "browser.key/inner is in no folder" in refused(archive, home)


@pytest.mark.parametrize("field", ["schema_version", "format"])
def test_an_archive_of_a_newer_talkback_says_which_version_it_needs(
    whole: Path, tmp_path: Path, home: Home, field: str
) -> None:
    def age(members: Members, manifest: dict[str, object]) -> None:
        manifest |= {field: 99, "talkback": "7.1.0", "a field of the future": True}

    archive = rewrite(whole, tmp_path / "a.tar", age)
    assert "install Talkback 7.1.0 or newer" in refused(archive, home)
