"""From the client's config and the image's to the OCI document."""

from __future__ import annotations

from typing import Any

import errdefs
import pytest
from dockerd_api.engine import merge, mounts, options, signals, spec, validate
from dockerd_api.engine.model import Container, Phase, State
from dockerd_api.engine.spec import Device, Security, Surroundings
from dockerd_api.engine.users import User

from tests.unit.engine.test_options import HOST

IMAGE = {
    "Entrypoint": ["/entry"],
    "Cmd": ["default"],
    "Env": ["PATH=/image", "A=1"],
    "WorkingDir": "/work",
    "Labels": {"from": "image", "both": "image"},
    "ExposedPorts": {"80/tcp": {}},
    "StopSignal": "SIGINT",
}


def merged(image: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    return merge.merge(
        options.decode({"Image": "x", **given}, options.CONFIG, "C"), IMAGE if image is None else image
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["/entry", "default"]),
        ({"Cmd": ["own"]}, ["/entry", "own"]),
        ({"Entrypoint": ["/own"]}, ["/own"]),
        ({"Entrypoint": ["/own"], "Cmd": ["a"]}, ["/own", "a"]),
        ({"Entrypoint": [""], "Cmd": ["sh"]}, ["sh"]),
    ],
)
def test_entrypoint_and_command(given: dict[str, Any], words: list[str]) -> None:
    path, args = merge.path_and_args(merged(**given))
    assert [path, *args] == words


def test_no_command_at_all() -> None:
    with pytest.raises(errdefs.InvalidArgument, match="no command specified"):
        merged({})


def test_the_rest_is_joined_and_the_client_wins() -> None:
    config = merged(Env=["A=2", "B=3"], Labels={"both": "own"}, ExposedPorts={"81/tcp": {}})
    assert config["Env"] == ["A=2", "B=3", "PATH=/image"]
    assert config["Labels"] == {"from": "image", "both": "own"}
    assert set(config["ExposedPorts"]) == {"80/tcp", "81/tcp"}
    assert (config["WorkingDir"], config["StopSignal"]) == ("/work", "SIGINT")
    assert signals.stop_signal(config) == 2


def record(config: dict[str, Any] | None = None, **host: Any) -> Container:
    host_config = options.decode(host, options.HOST_CONFIG, "H")
    validate.host_config(host_config, HOST, {"runc": ""})
    host_config["CgroupnsMode"] = host_config["CgroupnsMode"] or "private"
    own = merged(Hostname="box", **(config or {}))
    path, args = merge.path_and_args(own)
    return Container("a" * 64, "t", "", path, args, own, host_config, {}, "sha256:1", "x", log_path="/log")


def around(container: Container, **changes: Any) -> Surroundings:
    values: dict[str, Any] = {
        "user": User(1, 2, (2, 3), "/home/u"),
        "security": Security(["CAP_CHOWN"], {"defaultAction": "x"}, ["/m"], ["/r"], "", False),
        "mounts": mounts.plan(container.host_config),
        "devices": [],
        "netns_path": "/run/ns",
        "new_netns": True,
        "pid_namespace": "",
        "ipc_namespace": "",
        "container_dir": "/dir",
        "shm_path": "",
        "hosts_dir": "/dir",
        "cgroup_parent": "/docker",
        "init_binary": "",
        "sysctls": {"net.ipv4.ping_group_range": "0 1"},
        "recursive_readonly": True,
        "default_ulimits": [],
    }
    return Surroundings(**(values | changes))


def built(
    config: dict[str, Any] | None = None, *, extra: dict[str, Any] | None = None, **host: Any
) -> dict[str, Any]:
    container = record(config, **host)
    return spec.build(container, around(container, **(extra or {})))


def test_the_plain_document() -> None:
    document = built()
    process, linux = document["process"], document["linux"]
    assert process["args"] == ["/entry", "default"]
    assert process["user"] == {"uid": 1, "gid": 2, "additionalGids": [2, 3]}
    assert process["cwd"] == "/work"
    assert set(process["env"]) == {"PATH=/image", "A=1", "HOSTNAME=box", "HOME=/home/u"}
    assert process["capabilities"]["bounding"] == ["CAP_CHOWN"]
    assert "ambient" not in process["capabilities"]
    assert document["hostname"] == "box"
    assert linux["cgroupsPath"] == "/docker/" + "a" * 64
    assert {"type": "network", "path": "/run/ns"} in linux["namespaces"]
    assert {space["type"] for space in linux["namespaces"]} == {
        "mount",
        "network",
        "uts",
        "pid",
        "ipc",
        "cgroup",
    }
    assert linux["sysctl"] == {"net.ipv4.ping_group_range": "0 1"}
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    binds = {mount["destination"]: mount["source"] for mount in document["mounts"] if mount["type"] == "bind"}
    assert binds == {
        "/etc/hosts": "/dir/hosts",
        "/etc/hostname": "/dir/hostname",
        "/etc/resolv.conf": "/dir/resolv.conf",
    }
    assert document["annotations"]["dev.buoy.log.path"] == "/log"


def test_limits() -> None:
    resources = built(Memory=8 << 20, NanoCpus=5 * 10**8, PidsLimit=7, CpuShares=3, CpusetCpus="0")["linux"][
        "resources"
    ]
    assert resources["memory"] == {"limit": 8 << 20, "swap": 16 << 20}
    assert resources["cpu"] == {"shares": 3, "quota": 50_000, "period": 100_000, "cpus": "0"}
    assert resources["pids"] == {"limit": 7}
    assert built(PidsLimit=0)["linux"]["resources"]["pids"] == {"limit": -1}


def test_privileged_and_host_namespaces() -> None:
    document = built(Privileged=True, PidMode="host", IpcMode="host", UTSMode="host", NetworkMode="host",
                     extra={"netns_path": None, "new_netns": False, "shm_path": "/dev/shm"})  # fmt: skip
    assert {space["type"] for space in document["linux"]["namespaces"]} == {"mount", "cgroup"}
    assert document["hostname"] == ""
    assert document["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    for mount in document["mounts"]:
        if mount["destination"] in ("/sys", "/sys/fs/cgroup"):
            assert "ro" not in mount["options"]
    assert any(mount["source"] == "/dev/shm" for mount in document["mounts"])


def test_mounts_and_readonly_root() -> None:
    document = built(ReadonlyRootfs=True, Binds=["/tmp:/data:ro", "/x:/etc/hosts"], Tmpfs={"/t": ""})
    found = {mount["destination"]: mount for mount in document["mounts"]}
    assert document["root"]["readonly"]
    assert found["/data"]["options"] == ["rbind", "rro", "rprivate"]
    assert found["/etc/hosts"]["source"] == "/x"
    assert "ro" in found["/etc/hostname"]["options"]
    assert "ro" not in found["/dev"]["options"]
    assert found["/t"]["type"] == "tmpfs"
    plain = built(Binds=["/tmp:/data:ro"], extra={"recursive_readonly": False})
    assert next(m for m in plain["mounts"] if m["destination"] == "/data")["options"][1] == "ro"


def test_init_devices_ulimits_and_console() -> None:
    device = Device("/dev/x", "c", 1, 3, 0o666, 0, 0, "r")
    document = built({"Tty": True}, Ulimits=[{"Name": "nofile", "Soft": 1, "Hard": -1}], ConsoleSize=[5, 6],
                     extra={"init_binary": "/usr/bin/tini", "devices": [device]})  # fmt: skip
    assert document["process"]["args"][:2] == ["/sbin/docker-init", "--"]
    assert document["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2**64 - 1}]
    assert document["process"]["consoleSize"] == {"height": 5, "width": 6}
    assert "TERM=xterm" in document["process"]["env"]
    assert document["linux"]["devices"][0]["path"] == "/dev/x"
    assert {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"} in document["linux"][
        "resources"
    ]["devices"]


def test_a_record_survives_json() -> None:
    container = record()
    assert Container.from_json(container.to_json()) == container


def test_words_of_a_state() -> None:
    assert State(Phase.STARTING, before=Phase.EXITED).status == "exited"
    assert State(Phase.PAUSED).running
    assert State(Phase.RESTARTING).running
    assert not State(Phase.RESTARTING).alive


@pytest.mark.parametrize(
    ("text", "number"), [("KILL", 9), ("sigterm", 15), ("9", 9), ("RTMIN+3", 37), ("64", 64)]
)
def test_signals(text: str, number: int) -> None:
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["FOO", "0", "99", "", "-1"])
def test_no_signals(text: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        signals.parse(text)
