"""`mounts` of the runtime spec: every option on the real kernel, and what may not be mounted where."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from linux import mounts as m
from linux import syscalls
from linux.mounts import MountPoint, parse_mountinfo

from tests.kernel.runtime.bundle import Bundle

pytestmark = pytest.mark.root


def table_of(bundle: Bundle, *args: str) -> dict[str, MountPoint]:
    """The mounts that a container sees, by target; the last one where several lie on each other."""
    done = bundle.run("cat", "/proc/self/mountinfo", *args)
    return {point.target: point for point in parse_mountinfo(done.stdout.splitlines())}


def words(point: MountPoint) -> set[str]:
    return {*point.options.split(",")}


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs (nosuid, nodev, noatime) with a file and, in `sub`, another one (noexec)."""
    top = tmp_path / "source"
    top.mkdir()
    syscalls.mount("t", str(top), "tmpfs", m.MS_NOSUID | m.MS_NODEV | m.MS_NOATIME, "size=1m")
    try:
        (top / "file").write_text("content")
        (top / "sub").mkdir()
        syscalls.mount("t", str(top / "sub"), "tmpfs", m.MS_NOEXEC, "size=1m")
        yield top
    finally:
        syscalls.umount2(str(top), m.MNT_DETACH)


# options of a new file system: what the mount has then, what it has not, what the super block has
NEW: list[tuple[list[str], set[str], set[str], set[str]]] = [
    ([], {"rw", "relatime"}, {"nosuid", "noexec"}, {"rw"}),
    (["defaults"], {"rw", "relatime"}, {"nosuid"}, {"rw"}),
    (["ro"], {"ro"}, {"rw"}, set()),
    (["ro", "rw"], {"rw"}, {"ro"}, {"rw"}),
    (["nosuid", "nodev", "noexec"], {"nosuid", "nodev", "noexec"}, set(), set()),
    (["nosuid", "suid", "nodev", "dev", "noexec", "exec"], set(), {"nosuid", "nodev", "noexec"}, set()),
    (["noatime"], {"noatime"}, {"relatime"}, set()),
    (["noatime", "atime"], {"relatime"}, {"noatime"}, set()),
    (["strictatime"], set(), {"noatime", "relatime"}, set()),
    (["strictatime", "nostrictatime"], {"relatime"}, set(), set()),
    (["relatime", "nodiratime"], {"relatime", "nodiratime"}, set(), set()),
    (["norelatime", "nodiratime", "diratime"], {"relatime"}, {"nodiratime"}, set()),
    (["nosymfollow"], {"nosymfollow"}, set(), set()),
    (["nosymfollow", "symfollow"], set(), {"nosymfollow"}, set()),
    (["sync", "dirsync"], set(), set(), {"sync", "dirsync"}),
    (["sync", "async", "lazytime"], set(), set(), {"lazytime"}),
    (["lazytime", "nolazytime", "mand", "nomand"], {"relatime"}, set(), {"rw"}),
    (["silent", "iversion", "nosuid", "mode=700"], {"nosuid"}, set(), {"mode=700"}),
    (["silent", "loud", "iversion", "noiversion"], {"rw"}, set(), {"rw"}),
    (["rnosuid", "rnoexec", "rnoatime"], {"nosuid", "noexec", "noatime"}, set(), set()),
    (["rro"], {"ro"}, {"rw"}, {"rw"}),
    (["size=64k,nr_inodes=9", "mode=1750"], {"rw"}, set(), {"size=64k", "nr_inodes=9", "mode=1750"}),
]


def test_options_of_a_new_file_system(bundle: Bundle) -> None:
    bundle.spec["mounts"] += [
        {"destination": f"/new/{number}", "type": "tmpfs", "source": "t", "options": options}
        for number, (options, *_) in enumerate(NEW)
    ]
    table = table_of(bundle)
    for number, (options, wanted, unwanted, supers) in enumerate(NEW):
        point = table[f"/new/{number}"]
        has = words(point)
        assert wanted <= has, options
        assert not unwanted & has, options
        assert supers <= {*point.super_options.split(",")}, options
    superless = {"sync", "lazytime", "mand", "dirsync"}
    assert not superless & {*table["/new/16"].super_options.split(",")}


# options of a bind of a tree whose top is (nosuid, nodev, noatime) and whose `sub` is (noexec, relatime)
BINDS: list[tuple[list[str], set[str], set[str], set[str] | None, set[str]]] = [
    # options, top has, top has not, sub has (None: it is not there), sub has not
    (["bind"], {"rw", "nosuid", "nodev", "noatime"}, {"noexec"}, None, set()),
    (["rbind"], {"rw", "nosuid", "nodev", "noatime"}, {"noexec"}, {"rw", "noexec", "relatime"}, {"nosuid"}),
    (["rbind", "ro"], {"ro", "nosuid", "nodev", "noatime"}, {"rw"}, {"rw", "noexec"}, {"ro"}),
    (["rbind", "rro"], {"ro", "nosuid", "nodev"}, {"rw"}, {"ro", "noexec"}, {"rw"}),
    (["rbind", "ro", "rrw"], {"rw"}, {"ro"}, {"rw"}, set()),
    (["bind", "suid", "dev", "noexec"], {"noexec", "noatime"}, {"nosuid", "nodev"}, None, set()),
    (["bind", "atime"], {"relatime"}, {"noatime"}, None, set()),
    (["bind", "strictatime", "nodiratime"], {"nodiratime"}, {"noatime", "relatime"}, None, set()),
    (["rbind", "rsuid", "rdev", "rexec"], set(), {"nosuid", "nodev"}, set(), {"noexec"}),
    (["rbind", "rnosuid", "rnodev", "rnoexec"], {"noexec"}, set(), {"nosuid", "nodev", "noexec"}, set()),
    (["rbind", "rnosymfollow"], {"nosymfollow"}, set(), {"nosymfollow"}, set()),
    (["rbind", "nosymfollow", "rsymfollow"], set(), {"nosymfollow"}, set(), {"nosymfollow"}),
    (["rbind", "rnoatime", "rnodiratime"], {"noatime", "nodiratime"}, set(), {"noatime"}, {"relatime"}),
    (["rbind", "ratime", "rdiratime"], {"relatime"}, {"noatime"}, {"relatime"}, set()),
    (["rbind", "rstrictatime"], set(), {"noatime", "relatime"}, set(), {"relatime"}),
    (["rbind", "rnostrictatime"], {"relatime"}, {"noatime"}, {"relatime"}, set()),
    (["rbind", "rrelatime"], {"relatime"}, {"noatime"}, {"relatime"}, set()),
    (["rbind", "rstrictatime", "rnorelatime"], {"relatime"}, {"noatime"}, {"relatime"}, set()),
    (["rbind", "sync", "lazytime", "dirsync"], {"rw"}, set(), {"rw"}, set()),
]  # fmt: skip


def test_options_of_a_bind(bundle: Bundle, source: Path) -> None:
    bundle.spec["mounts"] += [
        {"destination": f"/bound/{number}", "source": str(source), "options": options}
        for number, (options, *_) in enumerate(BINDS)
    ]
    table = table_of(bundle)
    for number, (options, wanted, unwanted, in_sub, not_in_sub) in enumerate(BINDS):
        top = words(table[f"/bound/{number}"])
        assert wanted <= top, options
        assert not unwanted & top, options
        sub = table.get(f"/bound/{number}/sub")
        assert (sub is None) == (in_sub is None), options
        if sub is not None and in_sub is not None:
            assert in_sub <= words(sub), options
            assert not not_in_sub & words(sub), options


PROPAGATION: list[tuple[list[str], tuple[str, ...], tuple[str, ...]]] = [
    # options, fields of the top (by their first word), fields of `sub`
    (["rbind", "rprivate"], (), ()),
    (["rbind", "rshared"], ("shared",), ("shared",)),
    (["rbind", "rprivate", "shared"], ("shared",), ()),
    (["rbind", "rshared", "slave"], (), ("shared",)),
    (["rbind", "rprivate", "unbindable"], ("unbindable",), ()),
    (["rbind", "runbindable"], ("unbindable",), ("unbindable",)),
    (["rbind", "runbindable", "private"], (), ("unbindable",)),
]


def test_propagation(bundle: Bundle, source: Path) -> None:
    bundle.spec["mounts"] += [
        {"destination": f"/bound/{number}", "source": str(source), "options": options}
        for number, (options, *_) in enumerate(PROPAGATION)
    ]
    table = table_of(bundle)
    for number, (options, top, sub) in enumerate(PROPAGATION):
        for target, wanted in ((f"/bound/{number}", top), (f"/bound/{number}/sub", sub)):
            assert tuple(field.split(":")[0] for field in table[target].fields) == wanted, (options, target)


def test_a_slave_hears_what_the_host_mounts(bundle: Bundle, source: Path) -> None:
    """rslave hears of a later mount of the host's; rprivate does not."""
    syscalls.mount("", str(source), "", m.MS_SHARED)
    (source / "later").mkdir()
    for name, option in (("slave", "rslave"), ("private", "rprivate")):
        bundle.spec["mounts"].append(
            {"destination": f"/{name}", "source": str(source), "options": ["rbind", option]}
        )
    container_id, _ = bundle.start("sleep", "60")
    syscalls.mount("t", str(source / "later"), "tmpfs", 0, "size=4k")
    (source / "later/new").touch()
    try:
        done = bundle.call("exec", container_id, "ls", "/slave/later", "/private/later")
        assert done.stdout.split() == ["/private/later:", "/slave/later:", "new"]
    finally:
        syscalls.umount2(str(source / "later"), m.MNT_DETACH)


def test_remount(bundle: Bundle, source: Path) -> None:
    """Of a file system, of a bind's flags, and of what must still be written to."""
    bundle.spec["mounts"] += [
        {"destination": "/new", "type": "tmpfs", "source": "t", "options": ["size=64k", "nosuid"]},
        {"destination": "/new", "type": "tmpfs", "options": ["remount", "ro", "size=128k", "noexec"]},
        {"destination": "/bound", "source": str(source), "options": ["rbind"]},
        {"destination": "/bound", "options": ["bind", "remount", "ro", "suid"]},
        {"destination": "/bound/sub", "options": ["bind", "remount", "rro"]},
        {"destination": "/dev", "options": ["remount", "ro", "nosuid"]},
    ]
    table = table_of(bundle, "/dev/null")
    new = table["/new"]
    assert {"ro", "noexec"} <= words(new)
    assert "nosuid" not in words(new)
    assert "size=128k" in new.super_options
    assert {"ro", "nodev"} <= words(table["/bound"])
    assert "nosuid" not in words(table["/bound"])
    assert "ro" in words(table["/bound/sub"])
    assert "ro" in words(table["/dev"])


def test_long_options_with_commas(bundle: Bundle, tmp_path: Path) -> None:
    """fsconfig(2) takes 255 bytes; an overlay of several folders needs more, here with commas in names."""
    lowers = [tmp_path / f"{'x' * 60},{number}" for number in range(5)]
    for number, lower in enumerate(lowers):
        lower.mkdir()
        (lower / f"in{number}").touch()
    escaped = [str(lower).replace(",", r"\,") for lower in lowers]
    bundle.spec["mounts"] += [
        {
            "destination": "/long",
            "type": "overlay",
            "source": "o",
            "options": [f"lowerdir={':'.join(escaped)}"],
        }
    ]
    done = bundle.run("ls", "/long")
    assert done.stdout.split() == [f"in{number}" for number in range(5)]


def test_new_mounts_get_the_mode_of_their_target(bundle: Bundle) -> None:
    (bundle.rootfs / "old").mkdir(mode=0o751)
    for target, options in (("/old", []), ("/fresh", []), ("/other", ["mode=700"])):
        bundle.spec["mounts"].append(
            {"destination": target, "type": "tmpfs", "source": "t", "options": options}
        )
    assert bundle.run("stat", "-c", "%a", "/old", "/fresh", "/other").stdout.split() == ["751", "1777", "700"]


def test_mounts(bundle: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("content")
    (bundle.rootfs / "link").symlink_to("/real")
    (bundle.rootfs / "hanging").symlink_to("one/../two/file")
    bundle.spec["mounts"] += [
        {"destination": "/link/in", "source": "data", "options": ["rbind", "ro", "rprivate"]},
        {"destination": "/one/file", "source": str(data / "file"), "options": ["bind"]},
        {"destination": "/hanging", "source": str(data / "file"), "options": ["bind"]},
        {"destination": "relative", "type": "tmpfs", "source": "t", "options": ["ro", "noexec"]},
    ]
    done = bundle.run(
        "sh", "-c", "cat /real/in/file /one/file /two/file; touch /real/in/x /relative/x; mount"
    )
    assert done.stdout.startswith("content" * 3)
    assert done.stderr.count("Read-only file system") == 2
    lines = {line.split()[2]: line for line in done.stdout.splitlines() if " on " in line}
    assert "noexec" in lines["/relative"]
    assert "mode=620" in lines["/dev/pts"]
    assert not (bundle.rootfs.parent / "real").exists()


def test_copy_up(bundle: Bundle) -> None:
    var = bundle.rootfs / "var"
    var.mkdir(mode=0o751)
    (var / "x").write_text("kept")
    (var / "again").hardlink_to(var / "x")
    (var / "link").symlink_to("x")
    (var / "deep").mkdir()
    os.mkfifo(var / "deep/fifo", 0o640)
    os.mknod(var / "deep/null", 0o20600, os.makedev(1, 3))
    (var / "set").touch()
    (var / "set").chmod(0o4755)
    os.chown(var / "deep", 7, 8)
    os.utime(var / "deep/fifo", (5, 5))
    os.setxattr(var / "x", "trusted.kind", b"v")
    for target, options in (("/var", []), ("/moded", ["mode=700"])):
        (bundle.rootfs / target[1:]).mkdir(exist_ok=True)
        (bundle.rootfs / target[1:] / "y").touch()
        bundle.spec["mounts"].append(
            {"destination": target, "type": "tmpfs", "source": "t", "options": ["tmpcopyup", *options]}
        )
    script = (
        "cat /var/x /var/link; stat -c '%n %F %a %u:%g %h' /var /moded /var/* /var/deep/*;"
        "stat -c %Y /var/deep/fifo; echo new > /var/x; touch /var/z"
    )
    lines = bundle.run("sh", "-c", script).stdout.splitlines()
    assert lines == [
        "keptkept/var directory 751 0:0 3",
        "/moded directory 700 0:0 2",
        "/var/again regular file 644 0:0 2",
        "/var/deep directory 755 7:8 2",
        "/var/link symbolic link 777 0:0 1",
        "/var/set regular empty file 4755 0:0 1",
        "/var/x regular file 644 0:0 2",
        "/var/y regular empty file 644 0:0 1",
        "/var/deep/fifo fifo 640 0:0 1",
        "/var/deep/null character special file 600 0:0 1",
        "5",
    ]
    assert (var / "x").read_text() == "kept"


def test_copy_up_into_too_little_room(bundle: Bundle) -> None:
    (bundle.rootfs / "big").mkdir()
    (bundle.rootfs / "big/x").write_bytes(bytes(100_000))
    bundle.spec["mounts"].append(
        {"destination": "/big", "type": "tmpfs", "source": "t", "options": ["tmpcopyup", "size=4k"]}
    )
    done = bundle.run("true", check=False)
    assert "no space left on device" in done.stderr


def test_a_link_does_not_lead_out(bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (bundle.rootfs / "way").symlink_to(f"../../../..{outside}")
    bundle.spec["mounts"] += [
        {"destination": "/way/in", "type": "tmpfs", "source": "t", "options": ["size=4k"]},
        {"destination": "/way/file", "source": "/etc/hostname", "options": ["bind"]},
    ]
    bundle.run("true")
    assert list(outside.iterdir()) == []


def _tmpfs(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "tmpfs", "source": "t", "options": list(options)}


BAD: list[tuple[dict[str, Any], str]] = [
    (_tmpfs("/proc/tty"), r"\"/proc/tty\" cannot be mounted because it is inside /proc"),
    (_tmpfs("/proc"), r"\"/proc\" cannot be mounted because it is not of type proc"),
    (_tmpfs("/way/tty"), r"\"/way/tty\" cannot be mounted because it is inside /proc"),
    (_tmpfs("/way"), r"\"/way\" cannot be mounted because it is not of type proc"),
    ({"destination": "/proc", "source": "/etc", "options": ["bind"]}, "is not of type proc"),
    ({"destination": "/proc/1/attr", "source": "/etc", "options": ["bind"]}, "is inside /proc"),
    ({"destination": "/proc/sys", "source": "/proc/sys", "options": ["bind"]}, "is inside /proc"),
    (_tmpfs("/"), "is on the top of rootfs"),
    (_tmpfs("/bin/.."), "is on the top of rootfs"),
    ({"destination": "/up", "source": "/etc", "options": ["bind"]}, "is on the top of rootfs"),
    ({"destination": "/x", "type": "nosuchfs", "source": "t"}, "no such device"),
    (_tmpfs("/x", "nope=1"), "nope"),
    (_tmpfs("/x", "remount"), "no such file or directory"),
    (_tmpfs("/bin", "remount"), "invalid argument"),
    ({"destination": "/x", "source": "/nowhere", "options": ["bind"]}, "/nowhere: no such file or directory"),
    ({"destination": "/x", "source": "/etc/passwd/y", "options": ["bind"]}, "not a directory"),
    ({"destination": "/bin", "source": "/etc/passwd", "options": ["bind"]}, "not a directory"),
    ({"destination": "/bin/busybox", "source": "/etc", "options": ["bind"]}, "not a directory"),
    (_tmpfs("/loop/x"), "too many levels of symbolic links"),
]


@pytest.mark.parametrize(("mount", "message"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_bad_mounts(bundle: Bundle, mount: dict[str, Any], message: str) -> None:
    (bundle.rootfs / "way").symlink_to("proc")
    (bundle.rootfs / "up").symlink_to("bin/..")
    (bundle.rootfs / "loop").symlink_to("loop")
    bundle.spec["mounts"].append(mount)
    done = bundle.run("true", check=False)
    assert done.returncode == 1
    assert message in done.stderr
    where = f'error mounting \\"{mount.get("source", "")}\\" to rootfs at \\"{mount["destination"]}\\"'
    assert where in done.stderr
    assert bundle.cgroups() == []


def test_what_may_lie_on_proc(bundle: Bundle, tmp_path: Path) -> None:
    """The files that lxcfs stands in for, another procfs, and anything on a procfs that is not /proc."""
    (tmp_path / "uptime").write_text("forever\n")
    bundle.spec["mounts"] += [
        {"destination": "/proc/uptime", "source": str(tmp_path / "uptime"), "options": ["bind"]},
        {"destination": "/host/proc", "source": "/proc", "options": ["rbind", "ro"]},
        {"destination": "/host/proc/tty", "type": "tmpfs", "source": "t"},
    ]
    assert bundle.run("sh", "-c", "cat /proc/uptime; ls /host/proc/tty").stdout == "forever\n"
    bundle.spec["mounts"][0] = {"destination": "/proc", "source": "/proc", "options": ["rbind"]}
    done = bundle.run("sh", "-c", "ls -d /proc/[0-9]*; true")
    assert len(done.stdout.split()) > 1


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_a_link_in_the_place_of_a_kernel_directory(bundle: Bundle, name: str) -> None:
    (bundle.rootfs / "elsewhere").mkdir()
    (bundle.rootfs / name).symlink_to("elsewhere")
    done = bundle.run("true", check=False)
    assert "must be mounted on ordinary directory" in done.stderr


def test_sysfs_and_mqueue(bundle: Bundle) -> None:
    table = table_of(bundle)
    assert table["/sys"].fstype == "sysfs"
    assert {"ro", "nosuid", "nodev", "noexec"} <= words(table["/sys"])
    assert table["/dev/mqueue"].fstype == "mqueue"
    assert table["/proc"].fstype == "proc"


def test_nothing_of_the_host_is_left(bundle: Bundle) -> None:
    """Each mount that the container sees is one that it asked for."""
    table = table_of(bundle)
    wanted = {mount["destination"] for mount in bundle.spec["mounts"]}
    extra = {target for target in table if target not in wanted and not target.startswith("/sys/fs/cgroup/")}
    assert extra <= {"/", *bundle.linux["maskedPaths"], *bundle.linux["readonlyPaths"]}
    before = subprocess.run(["cat", "/proc/self/mountinfo"], capture_output=True, text=True).stdout
    assert str(bundle.rootfs) not in before


def test_words_for_a_bind_are_warned_of(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    bundle.spec["mounts"].append(
        {"destination": "/data", "source": str(tmp_path / "data"), "options": ["bind", "ro", "size=1k"]}
    )
    done = bundle.run("grep", " /data ", "/proc/self/mountinfo")
    assert " ro," in done.stdout
    assert "level=warning" in done.stderr
    assert "option size=1k of the bind at /data has no effect" in done.stderr
