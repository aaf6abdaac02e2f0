"""The container's root: its propagation, the ways to become the root, and its view of control groups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from linux import mounts as m
from linux import syscalls
from linux.mounts import MountPoint, parse_mountinfo

from tests.kernel.runtime.bundle import SERVICES, Bundle

pytestmark = pytest.mark.root

ALL_CAPABILITIES = ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_DAC_OVERRIDE", "CAP_KILL"]


def table_of(bundle: Bundle) -> dict[str, MountPoint]:
    done = bundle.run("cat", "/proc/self/mountinfo")
    return {point.target: point for point in parse_mountinfo(done.stdout.splitlines())}


@pytest.mark.parametrize(
    ("value", "fields", "below"),
    [
        ("", (), ()),
        ("private", (), ()),
        ("rprivate", (), ()),
        ("slave", (), ()),
        ("rslave", (), ()),
        ("shared", ("shared",), ()),
        ("rshared", ("shared",), ("shared",)),
        ("unbindable", ("unbindable",), ()),
        ("runbindable", ("unbindable",), ("unbindable",)),
    ],
)
def test_rootfs_propagation(
    bundle: Bundle, value: str, fields: tuple[str, ...], below: tuple[str, ...]
) -> None:
    bundle.linux["rootfsPropagation"] = value
    table = table_of(bundle)
    assert tuple(field.split(":")[0] for field in table["/"].fields) == fields
    assert tuple(field.split(":")[0] for field in table["/dev"].fields) == below


def test_a_root_on_a_shared_mount(bundle: Bundle) -> None:
    """pivot_root(2) refuses shared parents, and nothing that the container mounts may come out."""
    syscalls.mount(str(bundle.folder), str(bundle.folder), "", m.MS_BIND)
    syscalls.mount("", str(bundle.folder), "", m.MS_SHARED)
    try:
        for value in ("", "rshared"):
            bundle.linux["rootfsPropagation"] = value
            container_id, _ = bundle.start("sleep", "60")
            assert not [p for p in m.mount_table() if p.target.startswith(str(bundle.rootfs))]
            bundle.call("delete", "--force", container_id)
    finally:
        syscalls.umount2(str(bundle.folder), m.MNT_DETACH)


def test_a_mount_comes_out_where_that_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    """rootfsPropagation and a bind both shared: what the container mounts there, the host sees."""
    shared = tmp_path / "shared"
    (shared / "in").mkdir(parents=True)
    for kind in ("bounding", "effective", "permitted"):
        bundle.process["capabilities"][kind] = ALL_CAPABILITIES
    syscalls.mount(str(shared), str(shared), "", m.MS_BIND)
    syscalls.mount("", str(shared), "", m.MS_SHARED)
    bundle.spec["mounts"].append(
        {"destination": "/shared", "source": str(shared), "options": ["rbind", "rshared"]}
    )
    seen = []
    try:
        for value in ("rslave", "rshared"):
            bundle.linux["rootfsPropagation"] = value
            bundle.run("mount", "-t", "tmpfs", "t", "/shared/in")
            seen.append([p.fstype for p in m.mount_table() if p.target == str(shared / "in")])
    finally:
        syscalls.umount2(str(shared), m.MNT_DETACH)
    assert seen == [[], ["tmpfs"]]


def test_a_read_only_root_keeps_its_flags(bundle: Bundle) -> None:
    syscalls.mount(str(bundle.rootfs), str(bundle.rootfs), "", m.MS_BIND)
    try:
        flags = m.MS_REMOUNT | m.MS_BIND | m.MS_NOSUID | m.MS_NODEV
        syscalls.mount("", str(bundle.rootfs), "", flags)
        options = table_of(bundle)["/"].options.split(",")
    finally:
        syscalls.umount2(str(bundle.rootfs), m.MNT_DETACH)
    assert {"ro", "nosuid", "nodev"} <= {*options}


def test_without_pivot_root(bundle: Bundle) -> None:
    """The host's /proc and /sys are out of reach even with every way to leave a chroot."""
    for kind in ("bounding", "effective", "permitted"):
        bundle.process["capabilities"][kind] = ALL_CAPABILITIES
    bundle.process["args"] = ["sh", "-c", "readlink /proc/self/ns/pid; ls /; cat /proc/self/mountinfo"]
    done = bundle.call("run", "--no-pivot", bundle.new_id())
    lines = done.stdout.splitlines()
    assert lines[0] != os.readlink("/proc/self/ns/pid")
    assert {"bin", "proc", "dev"} <= {*lines[1:8]}
    kinds = [p.target for p in parse_mountinfo(line for line in lines if " - " in line) if p.fstype == "proc"]
    assert kinds.count("/proc") == 1


# On the kernel's first root, which lies below every other: the namespace's real root comes to light when what
# covers it is taken away. The host's tree then lies on its /mnt. Directories that are made there are removed.
INITIAL = """
import json, os, sys
from runc_bin.libcontainer import container, create, spec, warmth
from linux import mounts as m, syscalls
warmth.warm()
bundle, root, container_id = sys.argv[1:]
document = json.load(open(bundle + "/config.json"))
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("", "/", "", m.MS_PRIVATE | m.MS_REC)
own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
trees = {name: m.clone_mount(name, recursive=True) for name in ("/", "/proc", "/sys", "/dev")}
syscalls.umount2("/", m.MNT_DETACH)
syscalls.setns(own, syscalls.CLONE_NEWNS)
made = []
try:
    if os.path.exists("/usr"):
        sys.exit("skip")
    for name, tree in trees.items():
        target = "/mnt" if name == "/" else name
        if not os.path.isdir(target):
            os.mkdir(target)
            made.append(target)
        m.attach(tree, os.open(target, os.O_PATH))
    read = spec.read_spec(document, "/mnt" + bundle)
    assert m.on_initial_root()
    record = create.create("/mnt" + root, container_id, read, create.CreateOptions(bundle="/mnt" + bundle))
    container.start("/mnt" + root, record)
    _, status = os.waitpid(record.init_process_pid, 0)
    container.delete("/mnt" + root, container_id, force=True)
    print(os.waitstatus_to_exitcode(status))
finally:
    for target in made:
        syscalls.umount2(target, m.MNT_DETACH)
        os.rmdir(target)
"""


def test_on_the_initial_ramdisk(bundle: Bundle) -> None:
    """The kernel's first root cannot be pivoted away: the container's root is moved over it."""
    bundle.process["args"] = [
        "sh",
        "-c",
        "ls -d /bin /usr /mnt /process_api; cat /proc/self/mountinfo; exit 7",
    ]
    (bundle.folder / "config.json").write_text(json.dumps(bundle.spec))
    bundle.root.mkdir()
    words = [sys.executable, "-ISc", f"import sys; sys.path.insert(0, {str(SERVICES)!r})\n{INITIAL}"]
    words += [str(bundle.folder), str(bundle.root), bundle.new_id()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if done.stderr.strip() == "skip" or "Operation not permitted" in done.stderr:
        pytest.skip("the kernel's first root is not empty, or out of reach")
    assert done.stdout.splitlines()[-1] == "7", done.stderr
    assert done.stdout.startswith("/bin\n")
    targets = [p.target for p in parse_mountinfo(line for line in done.stdout.splitlines() if " - " in line)]
    assert not [target for target in targets if target.startswith("/mnt")]


def _cgroup_mount(bundle: Bundle) -> dict[str, object]:
    found: dict[str, object] = next(x for x in bundle.spec["mounts"] if x["type"] == "cgroup")
    return found


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("access", ["ro", "rw"])
def test_cgroup_mounts(bundle: Bundle, own: bool, access: str) -> None:
    """With a namespace of its own the container's cgroup is the root of each hierarchy; without, it sees its
    own directory (v1) or the tree (v2)."""
    if not own:
        bundle.linux["namespaces"] = [n for n in bundle.linux["namespaces"] if n["type"] != "cgroup"]
    _cgroup_mount(bundle)["options"] = ["nosuid", "noexec", "nodev", "relatime", access]
    table = table_of(bundle)
    found = {t: p for t, p in table.items() if p.fstype in ("cgroup", "cgroup2") and t.startswith("/sys")}
    assert found
    name = bundle.linux["cgroupsPath"]
    for target, point in found.items():
        assert {access, "nosuid", "noexec", "nodev"} <= {*point.options.split(",")}, target
        if point.fstype == "cgroup":
            assert point.root == ("/" if own else name), target
    done = bundle.run("sh", "-c", "cd /sys/fs/cgroup; cat pids/cgroup.procs || cat cgroup.procs")
    assert "1" in done.stdout.split()
    script = "cd /sys/fs/cgroup; mkdir pids/x || mkdir x"
    done = bundle.run("sh", "-c", script, check=False)
    assert ("Read-only file system" in done.stderr) is (access == "ro")


def test_a_cgroup_mount_is_a_mount_like_others(bundle: Bundle) -> None:
    for target, message in (("/proc", "is not of type proc"), ("/", "is on the top of rootfs")):
        _cgroup_mount(bundle)["destination"] = target
        done = bundle.run("true", check=False)
        assert message in done.stderr
