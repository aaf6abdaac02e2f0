"""What config.json may say, and what is refused before anything is changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from errdefs import BuoyError, FailedPrecondition, InvalidArgument, NotFound, NotImplementedHere
from linux import mounts as m
from runc_bin.libcontainer import bind_sources, mount_labels, mount_options, selinux, spec, spec_document
from runc_bin.libcontainer.process_spec import read_further_process


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "rootfs").mkdir()
    return spec_document.default()


def read(document: Any, tmp_path: Path) -> spec.Spec:
    return spec.read_spec(document, str(tmp_path))


def test_the_default_document_is_valid(document: dict[str, Any], tmp_path: Path) -> None:
    made = read(document, tmp_path)
    assert made.rootfs == str(tmp_path / "rootfs")
    assert made.readonly_rootfs
    assert made.is_private("pid")
    assert made.process is not None
    assert made.process.args == ("sh",)
    assert made.process.capabilities.inheritable == 0


def change(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        document = document.setdefault(name, {})
    if value is None:
        document.pop(last, None)
    else:
        document[last] = value


def _bind(option: str) -> dict[str, Any]:
    return {"destination": "/x", "type": "bind", "source": "/y", "options": [option]}


def _ids(*ranges: tuple[int, int, int]) -> list[dict[str, int]]:
    return [
        {"containerID": inside, "hostID": outside, "size": size}
        for inside, outside, size in ranges or ((0, 1000, 10),)
    ]


def _device(**more: Any) -> dict[str, Any]:
    return {"path": "/dev/x", "type": "c", "major": 1, "minor": 3, **more}


BAD: list[tuple[str, Any, type[BuoyError], str]] = [
    ("ociVersion", "2.0", InvalidArgument, "unsupported runtime spec version"),
    ("linux", None, InvalidArgument, "linux must be specified"),
    ("root", None, InvalidArgument, "root must be specified"),
    ("root.path", "nowhere", InvalidArgument, "invalid rootfs"),
    ("root.path", "/", InvalidArgument, "invalid rootfs"),
    ("process.cwd", "", InvalidArgument, "Cwd property must not be empty"),
    ("process.cwd", "here", InvalidArgument, "Cwd must be an absolute path"),
    ("process.args", [], InvalidArgument, "args must not be empty"),
    ("process.args", ["a", 1], InvalidArgument, "process.args must hold strings"),
    ("process.args", ["a\0b"], InvalidArgument, "null byte"),
    ("process.user.uid", -1, InvalidArgument, "process.user.uid"),
    ("process.user.uid", 2**32 - 1, InvalidArgument, "process.user.uid"),
    ("process.user.additionalGids", [2**32], InvalidArgument, "additionalGids"),
    ("process.rlimits", [{"type": "RLIMIT_X", "soft": 1, "hard": 1}], InvalidArgument, "invalid rlimit type"),
    ("process.oomScoreAdj", 1001, InvalidArgument, "oomScoreAdj"),
    ("process.scheduler", {"policy": "SCHED_NONE"}, InvalidArgument, "invalid scheduler policy"),
    ("process.scheduler", {"nice": 1}, InvalidArgument, "invalid scheduler policy"),
    ("process.scheduler", {"policy": "SCHED_OTHER", "flags": ["X"]}, InvalidArgument, "scheduler flag"),
    ("process.scheduler", {"policy": "SCHED_OTHER", "nice": 20}, InvalidArgument, "scheduler.nice"),
    ("process.scheduler", {"policy": "SCHED_BATCH", "priority": 1}, InvalidArgument, "SCHED_FIFO or"),
    ("process.scheduler", {"policy": "SCHED_RR", "period": 1}, InvalidArgument, "for SCHED_DEADLINE"),
    ("process.ioPriority", {"class": "X"}, InvalidArgument, "ioPriority.class"),
    ("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}, InvalidArgument, "ioPriority"),
    ("process.execCPUAffinity", {"initial": "0-"}, InvalidArgument, "execCPUAffinity.initial"),
    ("process.execCPUAffinity", {"final": "3-1"}, InvalidArgument, "execCPUAffinity.final"),
    ("process.execCPUAffinity", {"final": "9999"}, InvalidArgument, "execCPUAffinity.final"),
    ("process.execCPUAffinity", {"final": "²"}, InvalidArgument, "execCPUAffinity.final"),
    ("process.capabilities", {"ambient": "CAP_KILL"}, InvalidArgument, "process.capabilities.ambient"),
    ("process.user.umask", 0o10000, InvalidArgument, "process.user.umask"),
    ("linux.personality", {"domain": "OTHER"}, InvalidArgument, "invalid personality"),
    ("linux.personality", {"domain": "LINUX", "flags": ["X"]}, InvalidArgument, "personality.flags"),
    ("linux.namespaces", [{"type": "pid"}, {"type": "pid"}], InvalidArgument, "duplicated ns"),
    ("linux.namespaces", [{"type": "moon"}], InvalidArgument, "does not exist"),
    ("linux.namespaces", [{"type": "pid", "path": "x"}], InvalidArgument, "must be absolute"),
    ("linux.timeOffsets", {}, InvalidArgument, "time namespace isn't enabled"),
    ("linux.uidMappings", [{"hostID": 1, "size": 1}], InvalidArgument, "user namespace isn't enabled"),
    ("linux.namespaces", [{"type": "mount"}], InvalidArgument, "hostname"),
    ("linux.sysctl", {"kernel.panic": "1"}, InvalidArgument, "not in a separate kernel namespace"),
    ("linux.sysctl", {"kernel.hostname": "x"}, InvalidArgument, "conflicts"),
    ("linux.sysctl", {"net.ipv4+x": "1"}, InvalidArgument, "not a valid name"),
    ("linux.sysctl", {"net.ipv4.ip_forward": "1\n2"}, InvalidArgument, "invalid value"),
    ("linux.sysctl", {"net.ipv4.ip_forward": "1\n"}, InvalidArgument, "invalid value"),
    ("linux.sysctl", {"net.ipv4.ip_forward=1": "1"}, InvalidArgument, "not a valid name"),
    ("linux.sysctl", {"net.ipv4.ip_forward net.a": "1"}, InvalidArgument, "not a valid name"),
    ("linux.sysctl", {"net.ipv4..ip_forward": "1"}, InvalidArgument, "not a valid name"),
    ("linux.sysctl", {"net/../kernel/panic": "1"}, InvalidArgument, "not a valid name"),
    ("linux.maskedPaths", ["proc"], InvalidArgument, "must be absolute"),
    ("linux.mountLabel", 'a"b', InvalidArgument, "linux.mountLabel"),
    ("linux.mountLabel", "a\nb", InvalidArgument, "linux.mountLabel"),
    ("linux.rootfsPropagation", "odd", InvalidArgument, "rootfsPropagation"),
    ("linux.devices", [{"path": "/dev/x", "type": "z"}], InvalidArgument, "invalid device type"),
    ("linux.devices", [{"path": "dev/x", "type": "c"}], InvalidArgument, "must be absolute"),
    ("linux.devices", [{"path": "/dev/..", "type": "p"}], InvalidArgument, "linux.devices.path"),
    ("linux.devices", [{"path": "/dev/x", "type": "c", "major": 1}], InvalidArgument, "linux.devices.minor"),
    ("linux.devices", [_device(major=4096)], InvalidArgument, "linux.devices.major"),
    ("linux.devices", [_device(minor=-1)], InvalidArgument, "linux.devices.minor"),
    ("linux.devices", [_device(fileMode="0666")], InvalidArgument, "linux.devices.fileMode"),
    ("linux.devices", [_device(uid=2**32 - 1)], InvalidArgument, "linux.devices.uid"),
    ("linux.devices", [_device(), _device(minor=4)], InvalidArgument, "two different devices at /dev/x"),
    ("linux.intelRdt", {"closID": "x"}, NotImplementedHere, "linux.intelRdt"),
    ("linux.memoryPolicy", {"mode": "MPOL_BIND"}, NotImplementedHere, "linux.memoryPolicy"),
    ("linux.netDevices", {"eth0": {}}, NotImplementedHere, "linux.netDevices"),
    ("solaris", {"milestone": "x"}, NotImplementedHere, "solaris"),
    ("windows", {"layerFolders": []}, NotImplementedHere, "windows"),
    ("vm", {"kernel": {}}, NotImplementedHere, "vm"),
    ("zos", {"namespaces": []}, NotImplementedHere, "zos"),
    ("annotations", {"": "x"}, InvalidArgument, "annotations"),
    ("process.commandLine", 1, InvalidArgument, "process.commandLine"),
    ("process.user.username", 1, InvalidArgument, "process.user.username"),
    ("mounts", [{"destination": "/x"}], InvalidArgument, "neither a type nor a bind"),
    ("mounts", [{"type": "tmpfs"}], InvalidArgument, "destination"),
    ("mounts", [{"destination": "/x", "options": ["bind"]}], InvalidArgument, "needs a source"),
    ("mounts", [_bind("idmap")], InvalidArgument, "needs mounts.uidMappings and"),
    ("mounts", [{"destination": "/", "type": "tmpfs", "options": ["ridmap"]}], InvalidArgument, "bind-"),
    ("mounts", [{**_bind("bind"), "uidMappings": _ids()}], InvalidArgument, "must be given together"),
    ("mounts", [{**_bind("idmap"), "uidMappings": _ids((0, 1, 0)), "gidMappings": _ids()}], InvalidArgument,
     "mounts.uidMappings.size"),
    ("mounts", [{**_bind("idmap"), "uidMappings": _ids(), "gidMappings": _ids((0, 1, 5), (4, 9, 5))}],
     InvalidArgument, "mounts.gidMappings: ranges overlap at 4"),
    ("hooks", {"prestart": [{"path": "x"}]}, InvalidArgument, "must be absolute"),
    ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, InvalidArgument, "timeout"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "kind", "message"), BAD, ids=[f"{p}={v}" for p, v, _, _ in BAD])
def test_what_is_refused(
    document: dict[str, Any], tmp_path: Path, path: str, value: Any, kind: type[BuoyError], message: str
) -> None:
    change(document, path, value)
    with pytest.raises(kind, match=message) as found:
        read(document, tmp_path)
    assert path in found.value.message or "hostname: " in found.value.message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("linux.maskedPaths", ["/x"], "private MNT namespace"),
        ("linux.readonlyPaths", ["/x"], "private MNT namespace"),
        ("linux.rootfsPropagation", "private", "linux.rootfsPropagation"),
        ("linux.namespaces", [{"type": "uts"}, {"type": "user"}], "a user namespace needs a mount namespace"),
    ],
)
def test_what_is_refused_without_a_mount_namespace(
    document: dict[str, Any], tmp_path: Path, path: str, value: Any, message: str
) -> None:
    kinds = [item for item in document["linux"]["namespaces"] if item["type"] != "mount"]
    document["linux"] |= {"namespaces": kinds, "maskedPaths": [], "readonlyPaths": []}
    assert "mount" not in read(document, tmp_path).namespaces
    change(document, path, value)
    with pytest.raises(InvalidArgument, match=message):
        read(document, tmp_path)


def test_what_has_no_effect_is_told(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(document, tmp_path).warnings == ()
    document["mounts"] = [_bind("size=1"), {"destination": "/y", "type": "tmpfs", "options": ["size=1"]}]
    label = "system_u:object_r:svirt_sandbox_file_t:s0:c715,c811"
    document["linux"]["mountLabel"] = label
    document["process"] |= {"commandLine": "x", "user": {"username": "y"}}
    monkeypatch.setattr(selinux, "enabled", lambda: False)
    made = read(document, tmp_path)
    assert made.mount_label == ""
    assert made.warnings == (
        "linux.mountLabel has no effect: SELinux is not enabled on this host",
        "process.commandLine has no effect on Linux",
        "process.user.username has no effect on Linux",
        "option size=1 of the bind at /x has no effect",
    )
    monkeypatch.setattr(selinux, "enabled", lambda: True)
    assert read(document, tmp_path).mount_label == label


def test_labels_of_mounts() -> None:
    assert mount_labels.words("tmpfs", "a:b:c,d") == [("context", "a:b:c,d")]
    assert mount_options.data_text(mount_labels.words("tmpfs", "a:b:c,d")) == 'context="a:b:c,d"'
    assert [kind for kind in ("proc", "sysfs", "mqueue", "cgroup2") if mount_labels.words(kind, "a")] == []
    assert mount_labels.words("tmpfs", "") == []


def test_a_relative_bind_starts_from_the_bundle(document: dict[str, Any], tmp_path: Path) -> None:
    document["mounts"] = [{"destination": "x", "source": "data", "options": ["rbind", "ro"]}]
    (mount,) = read(document, tmp_path).mounts
    assert (mount.destination, mount.source, mount.kind) == ("/x", str(tmp_path / "data"), "bind")


def test_id_mapped_mounts(document: dict[str, Any], tmp_path: Path) -> None:
    maps = {"uidMappings": _ids(), "gidMappings": _ids((0, 5, 1), (7, 9, 2))}
    document["mounts"] = [{**_bind("rbind"), **maps}, {**_bind("ridmap"), **maps}, _bind("bind")]
    one, two, three = read(document, tmp_path).mounts
    assert [mount.options.id_map for mount in (one, two, three)] == ["idmap", "ridmap", ""]
    assert one.gid_mappings == two.gid_mappings == (spec.IdMapping(0, 5, 1), spec.IdMapping(7, 9, 2))


def test_an_ordinary_user_maps_no_ids(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document["mounts"] = [{**_bind("idmap"), "uidMappings": _ids(), "gidMappings": _ids()}]
    made = read(document, tmp_path)
    assert made.takes_sources
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FailedPrecondition, match=r"not supported for rootless containers \(/x\)"):
        bind_sources.check(made)


def test_sysctl_names_with_slashes(document: dict[str, Any], tmp_path: Path) -> None:
    document["linux"]["sysctl"] = {"net/ipv4/conf/eth0.1/rp_filter": "1", "net.ipv4.ip_forward": "0"}
    made = read(document, tmp_path)
    assert set(made.sysctl) == {"net.ipv4.conf.eth0/1.rp_filter", "net.ipv4.ip_forward"}


def test_a_missing_and_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json not found"):
        spec.load_spec(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidArgument, match="not valid JSON"):
        spec.load_spec(str(tmp_path))
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InvalidArgument, match="not valid JSON"):
        spec.load_spec(str(tmp_path))


def test_mount_options() -> None:
    options = mount_options.parse(
        ["nosuid", "ro", "noatime", "rslave", "rro", "mode=755", "nr_inodes=5,size=1k"]
    )
    assert options.read_only
    assert options.propagation == (m.MS_SLAVE | m.MS_REC,)
    assert options.recursive_set == m.MOUNT_ATTR_RDONLY
    assert options.data == (("mode", "755"), ("nr_inodes", "5"), ("size", "1k"))
    set_, clear = options.attributes()
    assert set_ == m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOATIME
    assert clear == m.MOUNT_ATTR_ATIME


def test_words_for_the_file_system() -> None:
    words = [
        "size=1k,,ro-ish",
        'context="system_u:object_r:c:s0:c1,c2",x',
        r"lowerdir=/a\,b:/c,userxattr",
        "k=",
    ]
    data = mount_options.parse(words).data
    assert data == (
        ("size", "1k"),
        ("ro-ish", None),
        ("context", "system_u:object_r:c:s0:c1,c2"),
        ("x", None),
        ("lowerdir", r"/a\,b:/c"),
        ("userxattr", None),
        ("k", ""),
    )
    again = mount_options.parse([mount_options.data_text(data)])
    assert again.data == data


@pytest.mark.parametrize(
    ("options", "classic"),
    [(["sync"], False), (["iversion"], True), (["silent"], True), (["silent", "loud"], False),
     ([f"a={'x' * 255}"], False), ([f"a={'x' * 256}"], True), ([f"a={'ü' * 128}"], True)],
)  # fmt: skip
def test_what_only_mount_can_say(options: list[str], classic: bool) -> None:
    assert mount_options.parse(options).needs_classic_mount() is classic


def test_a_remount_needs_no_source_and_no_type(document: dict[str, Any], tmp_path: Path) -> None:
    document["mounts"] = [
        {"destination": "/x", "options": ["bind", "remount", "ro"]},
        {"destination": "/y", "options": ["remount"]},
    ]
    assert [mount.options.remount for mount in read(document, tmp_path).mounts] == [True, True]


def test_the_last_of_two_options_wins() -> None:
    assert not mount_options.parse(["ro", "rw"]).read_only
    assert mount_options.parse(["rw", "ro"]).read_only


def test_lists_of_cpus(document: dict[str, Any], tmp_path: Path) -> None:
    document["process"]["execCPUAffinity"] = {"initial": " 0-2, 5,,7 - 8", "final": ""}
    process = read(document, tmp_path).process
    assert process is not None
    assert process.initial_cpus == frozenset((0, 1, 2, 5, 7, 8))
    assert process.final_cpus is None


def test_what_a_further_process_takes_over(document: dict[str, Any], tmp_path: Path) -> None:
    document["process"]["user"]["umask"] = 0o27
    defaults = read(document, tmp_path).process_defaults
    first = read_further_process({"args": ["x"], "cwd": "/", "user": {"uid": 3}}, defaults)
    assert (first.uid, first.umask, first.rlimits[0].name) == (3, 0o27, "RLIMIT_NOFILE")
    assert first.capabilities.effective
    document = {"args": ["x"], "cwd": "/", "user": {"umask": 0}, "capabilities": {}}
    second = read_further_process(document, defaults)
    assert second.umask == 0
    assert not second.capabilities.bounding
