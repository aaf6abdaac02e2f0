"""Mounts whose owners are mapped (`idmap`, `ridmap`), and other sources that init cannot take by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from linux import mounts as m
from linux import syscalls

from tests.kernel.runtime.bundle import Bundle

pytestmark = pytest.mark.root

FIRST = 200000  # of the ids outside of a container with a user namespace
ADMIN = ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_CHOWN"]


def ids(inside: int, outside: int, size: int) -> list[dict[str, int]]:
    return [{"containerID": inside, "hostID": outside, "size": size}]


def maps(inside: int, outside: int, size: int) -> dict[str, Any]:
    return {"uidMappings": ids(inside, outside, size), "gidMappings": ids(inside, outside, size)}


def can_map(folder: Path) -> bool:
    """Whether the file system of a folder can have its ids mapped on this kernel."""
    with subprocess.Popen(["unshare", "-U", "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 7000 100\n")
        made = m.clone_mount(str(folder))
        namespace = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY)
        try:
            m.map_ids(made, namespace, recursive=False)
        except OSError:
            return False
        finally:
            os.close(namespace)
            os.close(made)
            process.stdin.close()
    return True


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A mount with files of several owners, and another below it."""
    if not can_map(tmp_path):
        pytest.skip("the file system of the tests' folder cannot have its ids mapped")
    top = tmp_path / "source"
    other = tmp_path / "other"
    for folder in (top, other):
        folder.mkdir()
        folder.chmod(0o777)
        for owner in (0, 3, 500):
            (folder / f"of{owner}").write_text("x")
            os.chown(folder / f"of{owner}", owner, owner + 1)
    (top / "sub").mkdir()
    syscalls.mount(str(top), str(top), "", m.MS_BIND)
    try:
        syscalls.mount("", str(top), "", m.MS_REMOUNT | m.MS_BIND | m.MS_NOSUID | m.MS_NODEV)
        syscalls.mount(str(other), str(top / "sub"), "", m.MS_BIND)
        yield top
    finally:
        syscalls.umount2(str(top), m.MNT_DETACH)


@pytest.fixture
def mapped(bundle: Bundle) -> Bundle:
    """A bundle whose container has a user namespace, and a root that its root owns."""
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = ids(0, FIRST, 1001)
    os.chown(bundle.rootfs, FIRST, FIRST)
    return bundle


def owners(bundle: Bundle, *folders: str) -> dict[str, list[str]]:
    """The `uid:gid` of of0, of3 and of500 in each folder, as the container sees them."""
    paths = [f"{folder}/of{owner}" for folder in folders for owner in (0, 3, 500)]
    lines = bundle.run("stat", "-c", "%u:%g", *paths).stdout.split()
    return {folder: lines[3 * number : 3 * number + 3] for number, folder in enumerate(folders)}


PLAIN = ["0:1", "3:4", "500:501"]
SHIFTED = ["7000:7001", "7003:7004", "65534:65534"]


def test_mappings_of_the_mount(bundle: Bundle, source: Path) -> None:
    """The mapping is the mount's alone; `ridmap` reaches the mounts below, `idmap` does not."""
    shift = maps(0, 7000, 100)
    bundle.spec["mounts"] += [
        {"destination": "/one", "source": str(source), "options": ["rbind", "idmap"], **shift},
        {"destination": "/all", "source": str(source), "options": ["rbind", "ridmap", "rnoexec"], **shift},
        {"destination": "/implied", "source": str(source), "options": ["bind"], **shift},
        {"destination": "/none", "source": str(source), "options": ["rbind"]},
        {"destination": "/file", "source": str(source / "of3"), "options": ["bind", "idmap", "ro"], **shift},
    ]
    assert owners(bundle, "/one", "/one/sub", "/all", "/all/sub", "/implied", "/none", "/none/sub") == {
        "/one": SHIFTED,
        "/one/sub": PLAIN,
        "/all": SHIFTED,
        "/all/sub": SHIFTED,
        "/implied": SHIFTED,
        "/none": PLAIN,
        "/none/sub": PLAIN,
    }
    script = "stat -c %u /file; echo > /file; cat /proc/self/mountinfo"
    done = bundle.run("sh", "-c", script)
    assert done.stdout.startswith("7003\n")
    assert "Read-only file system" in done.stderr
    options = {p.target: p.options.split(",") for p in m.parse_mountinfo(done.stdout.splitlines()[1:])}
    assert {"nosuid", "nodev"} <= {*options["/one"]}
    assert {"noexec", "nosuid", "nodev"} <= {*options["/all"]}
    assert "noexec" in options["/all/sub"]


def test_what_is_written_is_owned_by_whom_the_mapping_says(bundle: Bundle, source: Path) -> None:
    bundle.spec["mounts"].append(
        {"destination": "/data", "source": str(source), "options": ["bind", "idmap"], **maps(0, 7000, 100)}
    )
    bundle.process["user"] = {"uid": 7042, "gid": 7043}
    bundle.run("touch", "/data/new")
    info = (source / "new").stat()
    assert (info.st_uid, info.st_gid) == (42, 43)


def test_different_maps_of_users_and_groups(bundle: Bundle, source: Path) -> None:
    both = {"uidMappings": ids(0, 10, 1) + ids(3, 20, 1), "gidMappings": ids(0, 30, 1000)}
    bundle.spec["mounts"].append(
        {"destination": "/data", "source": str(source), "options": ["bind", "idmap"], **both}
    )
    assert owners(bundle, "/data") == {"/data": ["10:31", "20:34", "65534:531"]}


def test_the_mapping_of_the_container(mapped: Bundle, source: Path) -> None:
    """Without mappings of its own a mount has the container's: what the host's root owns, its root owns."""
    mapped.spec["mounts"] += [
        {"destination": "/own", "source": str(source), "options": ["rbind", "ridmap"]},
        {"destination": "/top", "source": str(source), "options": ["rbind", "idmap"]},
        {"destination": "/other", "source": str(source), "options": ["rbind", "idmap"], **maps(3, FIRST, 1)},
        {"destination": "/plain", "source": str(source), "options": ["rbind"]},
    ]
    nobody = "65534:65534"
    assert owners(mapped, "/own", "/own/sub", "/top", "/top/sub", "/other", "/plain") == {
        "/own": PLAIN,
        "/own/sub": PLAIN,
        "/top": PLAIN,
        "/top/sub": [nobody] * 3,
        "/other": [nobody, "0:65534", nobody],
        "/plain": [nobody] * 3,
    }
    mapped.run("sh", "-c", "echo new > /own/of0; touch /own/sub/mine")
    assert ((source / "of0").read_text(), (source / "sub/mine").stat().st_uid) == ("new\n", 0)


def test_the_mapping_of_a_joined_namespace(mapped: Bundle, source: Path) -> None:
    _, pid = mapped.start("sleep", "60")
    kept = [item for item in mapped.linux["namespaces"] if item["type"] not in ("user", "network")]
    joined = [
        {"type": kind, "path": f"/proc/{pid}/ns/{name}"}
        for kind, name in (("user", "user"), ("network", "net"))
    ]
    mapped.linux["namespaces"] = [*kept, *joined]
    mapped.linux["cgroupsPath"] += "2"
    del mapped.linux["uidMappings"], mapped.linux["gidMappings"]
    mapped.spec["mounts"].append(
        {"destination": "/own", "source": str(source), "options": ["rbind", "idmap"]}
    )
    assert owners(mapped, "/own") == {"/own": PLAIN}


def test_what_cannot_be_mapped(bundle: Bundle, source: Path) -> None:
    """Not every file system can, and nothing twice; the error says what was tried on what."""
    mount = {"destination": "/x", "source": "/proc/sys", "options": ["bind", "idmap"], **maps(0, 7000, 100)}
    bundle.spec["mounts"].append(mount)
    done = bundle.run("true", check=False)
    assert done.returncode == 1
    assert (
        "failed to set MOUNT_ATTR_IDMAP on /proc/sys: invalid argument (does its file system" in done.stderr
    )
    assert r"error mounting \"/proc/sys\" to rootfs at \"/x\"" in done.stderr
    mount["source"] = "/nowhere"
    assert "/nowhere: no such file or directory" in bundle.run("true", check=False).stderr
    assert bundle.cgroups() == []


def test_a_source_that_the_container_s_root_cannot_reach(mapped: Bundle, tmp_path: Path) -> None:
    """Behind a directory of another user's: the caller, who may, takes it."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    os.chown(private, 4321, 4321)
    (private / "file").write_text("content")
    mapped.spec["mounts"] += [
        {"destination": "/file", "source": str(private / "file"), "options": ["bind", "ro"]},
        {"destination": "/null", "source": "/dev/null", "options": ["bind"]},
        {"destination": "/missing", "source": str(private / "missing"), "options": ["bind"]},
    ]
    done = mapped.run("cat", "/file", check=False)
    assert f"{private}/missing: no such file or directory" in done.stderr
    mapped.spec["mounts"].pop()
    assert mapped.run("cat", "/file").stdout == "content"


@pytest.mark.parametrize("closed", [False, True])
def test_flags_of_the_host_s_mounts_are_locked(mapped: Bundle, tmp_path: Path, closed: bool) -> None:
    """Root of a user namespace cannot undo them, whoever has taken the source, nor can its spec."""
    data = tmp_path / "data"
    data.mkdir()
    syscalls.mount("t", str(data), "tmpfs", m.MS_NOSUID | m.MS_NOATIME, "size=1m")
    for kind in ("bounding", "effective", "permitted"):
        mapped.process["capabilities"][kind] = ADMIN
    source = data / "in"
    source.mkdir()
    if closed:
        os.chown(data, 4321, 4321)
        data.chmod(0o700)
    mount = {"destination": "/data", "source": str(source), "options": ["bind", "nodev"]}
    mapped.spec["mounts"].append(mount)
    flags = m.MS_REMOUNT | m.MS_BIND | m.MS_RDONLY | m.MS_NOSUID | m.MS_NOATIME
    syscalls.mount("", str(data), "", flags)
    try:
        # the mount(8) of busybox ends with 32 when the kernel says EPERM
        done = mapped.run("sh", "-c", "mount -o remount,bind,rw /data; touch /data/x; true")
        assert "permission denied" in done.stderr.lower()
        assert "Read-only file system" in done.stderr
        for option, text in (
            ("rw", "cannot clear locked flags MS_RDONLY"),
            ("suid", "cannot clear locked flags MS_NOSUID"),
            ("strictatime", "cannot change locked atime flags MS_NOATIME"),
            ("rrw", "cannot clear locked flags MS_RDONLY"),
        ):
            mount["options"] = ["rbind", option]
            assert text in mapped.run("true", check=False).stderr
    finally:
        syscalls.umount2(str(data), m.MNT_DETACH)
