"""Refuses homes on disks of other machines, and on those where processes see no locks."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feedback.home import local_disk
from feedback.home.local_disk import (
    DiskError,
    Mount,
    check_local_disk,
    find_mount,
    is_local,
    is_locked_for_others,
)
from feedback.settings import Home
from tests.fixtures.command_line import run_talkback
from tests.fixtures.disks import small_disk

DOCKER = """\
600 500 0:50 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l
601 600 0:51 / /proc rw - proc proc rw
602 600 254:1 /var/lib/docker/volumes/v/_data /data rw,relatime master:2 - ext4 /dev/vda1 rw
603 600 0:60 / /mnt/share\\040of\\040all rw - nfs4 nas:/home rw
604 602 0:61 / /data/cloud rw shared:3 - fuse.rclone remote rw
605 600 0:62 / /mac rw - virtiofs share rw
606 600 0:63 / /c rw - 9p C: rw
607 600 0:64 / /windows rw - cifs //nas/home rw
608 600 0:65 / /strange rw - newfs none rw
"""
GVISOR = """\
1 1 0:1 / / rw - 9p none rw,trans=fd
2 1 0:2 / /proc rw - proc none rw
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    (tmp_path / "mountinfo").write_text(DOCKER)
    return tmp_path / "mountinfo"


@pytest.mark.parametrize(
    ("folder", "type", "local"),
    [
        ("/root/.talkback", "overlay", True),
        ("/data/home", "ext4", True),
        ("/database", "overlay", True),
        ("/mnt/share of all/home", "nfs4", False),
        ("/data/cloud/home", "fuse.rclone", False),
        ("/mac/home", "virtiofs", False),
        ("/c/home", "9p", False),
        ("/windows/home", "cifs", False),
        ("/strange/home", "newfs", False),
    ],
)
def test_the_mount_with_the_longest_path_above_a_folder_tells_its_type(
    mounts: Path, monkeypatch: pytest.MonkeyPatch, folder: str, type: str, local: bool
) -> None:
    monkeypatch.setattr(local_disk, "_mount_id", lambda folder: None)
    mount = find_mount(Path(folder), mounts)
    assert mount is not None and (mount.type, is_local(mount)) == (type, local)


def test_the_root_of_a_container_is_its_own_unless_many_machines_share_it(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(GVISOR)
    mount = find_mount(tmp_path, tmp_path / "mountinfo")
    assert mount == Mount("1", "/", "9p") and is_local(mount)
    for type in ("fuse.fuse-overlayfs", "virtiofs", "overlay"):
        assert is_local(Mount("1", "/", type))
    for type in ("nfs", "nfs4", "cifs", "ceph", "fuse.sshfs"):
        assert not is_local(Mount("1", "/", type))


def test_of_mounts_over_one_another_the_last_one_counts(
    mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_disk, "_mount_id", lambda folder: None)
    mounts.write_text(DOCKER + "700 600 0:70 / /data rw - fuse.sshfs host: rw\n")
    mount = find_mount(Path("/data/home"), mounts)
    assert mount is not None and mount.type == "fuse.sshfs"


def test_a_system_that_tells_nothing_is_judged_by_its_locks(home: Home) -> None:
    assert find_mount(home.root, home.root / "no" / "mountinfo") is None


def test_this_machines_own_disks_pass(home: Home, tmp_path: Path) -> None:
    check_local_disk(home)
    with small_disk(tmp_path / "disk", "1m") as disk:
        mount = find_mount(disk)
        assert mount is not None and (mount.point, mount.type) == (str(disk), "tmpfs")
        check_local_disk(Home.find(disk / "home"))


def on_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount("9", "/mnt/nas", "nfs4")
    monkeypatch.setattr(local_disk, "find_mount", lambda folder: mount)


def test_a_disk_of_another_machine_is_refused_with_the_remedy(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_nfs(monkeypatch)
    with pytest.raises(DiskError, match=r"nfs4.*TALKBACK_HOME.*trust_file_system = true"):
        check_local_disk(home)


@pytest.mark.parametrize("by", ["file", "environment"])
def test_a_setting_trusts_it_but_not_without_locks(
    home: Home, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    on_nfs(monkeypatch)
    if by == "file":
        home.toml.write_text("[storage]\ntrust_file_system = true\n")
    else:
        monkeypatch.setenv("TALKBACK_STORAGE_TRUST_FILE_SYSTEM", "1")
    check_local_disk(home)
    monkeypatch.setattr(local_disk, "is_locked_for_others", lambda file: False)
    with pytest.raises(DiskError, match="do not see each other's locks"):
        check_local_disk(home)
    assert not [path for path in home.root.iterdir() if path.name.startswith(".lock-")]


def test_another_process_is_refused_a_lock_that_is_held_and_gets_one_that_is_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    with file.open("w") as stream:
        assert not is_locked_for_others(file)
        fcntl.lockf(stream, fcntl.LOCK_EX)
        assert is_locked_for_others(file)


def test_where_no_process_can_be_started_nothing_is_held_against_the_disk(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    check_local_disk(home)


def test_it_takes_less_than_50_ms(home: Home) -> None:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        check_local_disk(home)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05


UNSEEN_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#define GRANT(name)                                                          \\
    int name(int file, int command, ...) {                                   \\
        va_list list;                                                        \\
        va_start(list, command);                                             \\
        void *argument = va_arg(list, void *);                               \\
        va_end(list);                                                        \\
        if (command == F_SETLK || command == F_SETLKW) return 0;             \\
        int (*real)(int, int, ...) = dlsym(RTLD_NEXT, #name);                \\
        return real(file, command, argument);                                \\
    }
GRANT(fcntl)
GRANT(fcntl64)
"""
"""What programs get of a file system that grants every lock to everybody, as NFS with nolock."""


def test_a_file_system_that_grants_a_lock_twice_is_refused_in_one_line(
    home: Home, tmp_path: Path
) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler")
    source, shim = tmp_path / "unseen.c", tmp_path / "unseen.so"
    source.write_text(UNSEEN_LOCKS)
    command = [compiler, "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    done = run_talkback(home, "status", LD_PRELOAD=str(shim))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "do not see each other's locks" in done.stderr and "TALKBACK_HOME" in done.stderr
    assert run_talkback(home, "status").returncode == 0


def test_commands_refuse_such_a_home_in_one_line(tmp_path: Path) -> None:
    """A file system that is real, and not known: ramfs's kin with neither disk nor name here."""
    folder = tmp_path / "strange"
    folder.mkdir()
    mount = ["mount", "-t", "hugetlbfs", "none", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount disks")
    try:
        (folder / "home").mkdir()
        done = run_talkback(Home(folder / "home"), "status")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "hugetlbfs" in done.stderr and "TALKBACK_HOME" in done.stderr
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
