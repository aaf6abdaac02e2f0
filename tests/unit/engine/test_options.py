"""Options of a container: types, what is refused, Docker's defaults and texts."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import errdefs
import pytest
from dockerd_api.engine import mounts, options, ports, validate
from dockerd_api.engine.host import Host, parse_set

HOST = Host(
    cgroup_version=1,
    processors=2,
    cpus="0-1",
    memory_nodes="0",
    memory_bytes=8 << 30,
    kernel="6.1.0",
    machine="x86_64",
    os_name="Debian",
    os_version="12",
    apparmor=False,
    boot_id="b",
    swap_accounting=True,
    oom_kill_disable=True,
    swappiness=True,
    controllers=frozenset(("memory", "cpu", "cpuset", "pids")),
)

NO_SYSCTLS = (
    *("", ".", "net.", ".net", "net..a", "net/../kernel/panic", "net.a=1", "net.a+net.b", "net.a net.b"),
    *("net.a\nnet.b", "net.a\0", "net.a\n", "net.\u00a0a"),
)


def host_config(**given: Any) -> dict[str, Any]:
    decoded = options.decode(given, options.HOST_CONFIG, "HostConfig")
    validate.host_config(decoded, HOST, {"runc": ""})
    return decoded


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"Memory": -1}, "Minimum memory limit allowed is 6MB"),
        ({"Memory": 8 << 20, "MemorySwap": 6 << 20}, "Minimum memoryswap limit should be larger than memory"),
        ({"MemorySwap": 8 << 20}, "You should always set the Memory limit"),
        ({"Memory": 8 << 20, "MemoryReservation": 9 << 20}, "can not be less than memory reservation"),
        ({"MemorySwappiness": 101}, "valid memory swappiness range is 0-100"),
        ({"NanoCpus": 3 * 10**9}, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        ({"NanoCpus": 10**9, "CpuQuota": 5000}, "Nano CPUs and CPU Quota cannot both be set"),
        ({"CpuPeriod": 1}, "CPU cfs period can not be less than 1ms"),
        ({"CpuQuota": 1}, "CPU cfs quota can not be less than 1ms"),
        ({"CpuShares": -1}, "invalid CPU shares"),
        ({"CpusetCpus": "x"}, "Invalid value x for cpuset cpus: invalid format: x"),
        ({"CpusetCpus": "7"}, "Requested CPUs are not available - requested 7, available: 0-1"),
        ({"ShmSize": -1}, "SHM size can not be less than 0"),
        ({"OomScoreAdj": 2000}, "range for oom score adj is"),
        ({"RestartPolicy": {"Name": "zz"}}, "unknown policy 'zz'"),
        ({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 1}}, "can only be used with 'on-failure'"),
        ({"AutoRemove": True, "RestartPolicy": {"Name": "always"}}, "can't create 'AutoRemove' container"),
        ({"PidMode": "zz"}, "invalid PID mode: zz"),
        ({"IpcMode": "zz"}, "invalid IPC mode: zz"),
        ({"Runtime": "zz"}, "unknown or invalid runtime name: zz"),
        ({"LogConfig": {"Type": "zz"}}, 'plugin "zz" not found'),
        ({"LogConfig": {"Type": "json-file", "Config": {"zz": "1"}}}, "unknown log opt 'zz'"),
        ({"ExtraHosts": ["zz"]}, 'bad format for add-host: "zz"'),
        ({"Dns": ["zz"]}, "bad nameserver address zz"),
        ({"Ulimits": [{"Name": "nofile", "Soft": 5, "Hard": 2}]}, "must be less than or equal to hard limit"),
        ({"Ulimits": [{"Name": "zz", "Soft": 1, "Hard": 1}]}, "invalid ulimit type: zz"),
        ({"Devices": [{"PathOnHost": "/dev/null", "CgroupPermissions": "rr"}]}, "invalid device permissions"),
        ({"DeviceCgroupRules": ["x 1:1 r"]}, "invalid device cgroup rule format"),
        ({"CgroupParent": "a/../b"}, "invalid cgroup parent"),
        *(({"Sysctls": {key: "1"}}, "invalid sysctl: ") for key in NO_SYSCTLS),
        ({"Sysctls": {"net.a": "1\nnet.b=2"}}, "invalid sysctl: the value of net.a is not one line"),
        ({"Sysctls": {"net.a": "1\n"}}, "invalid sysctl: the value of net.a is not one line"),
        ({"Annotations": {"": "x"}}, "the empty string is not permitted"),
        ({"PortBindings": {"xx/tcp": [{}]}}, 'invalid port specification: "xx"'),
        ({"PortBindings": {"80/tcp": [{"HostPort": "99999"}]}}, 'invalid port specification: "99999"'),
    ],
)
def test_what_cannot_be_is_refused_with_dockers_words(given: dict[str, Any], text: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match=re.escape(text)):
        host_config(**given)


def test_defaults_are_written_in() -> None:
    decoded = host_config(Memory=8 << 20)
    assert decoded["MemorySwap"] == 16 << 20
    assert decoded["ShmSize"] == 64 << 20
    assert decoded["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert decoded["LogConfig"] == {"Type": "json-file", "Config": {}}
    assert (decoded["NetworkMode"], decoded["IpcMode"], decoded["Runtime"]) == ("bridge", "private", "runc")


def test_a_host_without_a_feature_warns_as_docker() -> None:
    decoded = options.decode({"Memory": 8 << 20, "OomKillDisable": True}, options.HOST_CONFIG, "HostConfig")
    bare = dataclasses.replace(HOST, swap_accounting=False, oom_kill_disable=False)
    warnings = validate.host_config(decoded, bare, {"runc": ""})
    assert any("OomKillDisable discarded" in warning for warning in warnings)
    assert decoded["MemorySwap"] == -1


@pytest.mark.parametrize("table", [options.CONFIG, options.HOST_CONFIG, options.ENDPOINT])
def test_every_refused_field_is_refused_unless_default(table: dict[str, options.Field]) -> None:
    samples: dict[str, Any] = {
        "string": "x", "bool": True, "int64": 1, "uint64": 1, "uint16": 1,
        "[]string": ["x"], "[]object": [{}],
        "map[string]string": {"a": "b"}, "map[string]struct {}": {"a": {}},
    }  # fmt: skip
    for name, field in table.items():
        if field.rule is options.Rule.REFUSED:
            with pytest.raises(errdefs.NotImplementedHere):
                options.decode({name: samples[field.kind]}, table, "X")
            options.decode({name: field.default}, table, "X")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"Cmd": 5}, "cannot unmarshal number into Go struct field C.Cmd of type string"),
        ({"Image": 5}, "cannot unmarshal number into Go struct field C.Image of type string"),
        ({"Tty": "x"}, "cannot unmarshal string into Go struct field C.Tty of type bool"),
        ({"Env": [1]}, "cannot unmarshal number into Go struct field C.Env of type string"),
        ({"StopTimeout": True}, "cannot unmarshal bool into Go struct field C.StopTimeout of type int"),
    ],
)
def test_a_wrong_type_has_the_words_of_go(given: dict[str, Any], text: str) -> None:
    with pytest.raises(errdefs.InvalidArgument) as caught:
        options.decode(given, options.CONFIG, "C")
    assert text in caught.value.message


def test_names_match_without_regard_to_case_and_the_exact_one_wins() -> None:
    assert options.decode({"image": "a"}, options.CONFIG, "C")["Image"] == "a"
    assert options.decode({"Image": "b", "image": "a"}, options.CONFIG, "C")["Image"] == "b"
    assert options.decode({"Cmd": "sh", "Unknown": 1}, options.CONFIG, "C")["Cmd"] == ["sh"]


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"Binds": ["/a:b"]}, errdefs.InvalidArgument, "mount path must be absolute"),
        ({"Binds": ["/a:/b:zz"]}, errdefs.InvalidArgument, "invalid mode: zz"),
        ({"Binds": ["/a:/b:ro,rw"]}, errdefs.InvalidArgument, "invalid mode: ro,rw"),
        ({"Binds": ["a/b:/b"]}, errdefs.InvalidArgument, "includes invalid characters"),
        ({"Binds": ["name:/b"]}, errdefs.NotImplementedHere, "named volumes"),
        ({"Binds": ["/a"]}, errdefs.NotImplementedHere, "anonymous volumes"),
        ({"Binds": ["/a:/"]}, errdefs.InvalidArgument, "destination can't be '/'"),
        ({"Binds": ["/a:/b", "/c:/b/"]}, errdefs.InvalidArgument, "Duplicate mount point: /b"),
        ({"Mounts": [{"Type": "zz", "Target": "/x"}]}, errdefs.InvalidArgument, "mount type unknown"),
        ({"Mounts": [{"Type": "bind", "Source": "/nonexist", "Target": "/x"}]}, errdefs.InvalidArgument,
         "bind source path does not exist: /nonexist"),
        ({"Mounts": [{"Type": "volume", "Target": "/x"}]}, errdefs.NotImplementedHere, "volume"),
        ({"Tmpfs": {"/x": "zz=1"}}, errdefs.InvalidArgument, 'invalid tmpfs option "zz"'),
    ],
)  # fmt: skip
def test_mounts_that_cannot_be(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        mounts.plan(given)
    assert text in str(caught.value)


def test_mounts_are_sorted_by_depth_and_shown() -> None:
    planned = mounts.plan({"Binds": ["/tmp:/a/b:ro"], "Tmpfs": {"/a": "size=1m,exec"}})
    assert [mount.destination for mount in planned] == ["/a", "/a/b"]
    assert "exec" in planned[0].options
    assert "noexec" not in planned[0].options
    assert planned[1].document() == {
        "Type": "bind", "Source": "/tmp", "Destination": "/a/b", "Mode": "ro", "RW": False,
        "Propagation": "rprivate",
    }  # fmt: skip


def test_ports() -> None:
    assert set(ports.exposed(["80", "90-91/udp"])) == {"80/tcp", "90/udp", "91/udp"}
    config: dict[str, Any] = {"ExposedPorts": {"81/tcp": {}, "80/tcp": {}}}
    host = {"PortBindings": ports.bindings({"80/tcp": [{"HostPort": "8080-8090"}]}), "PublishAllPorts": True}
    assert [
        (p["container_port"], p["host_port"], p["host_port_end"]) for p in ports.requests(config, host)
    ] == [
        (80, 8080, 8090),
        (81, 0, 0),
    ]
    with pytest.raises(errdefs.InvalidArgument, match="unknown protocol"):
        ports.exposed(["80/foo"])


def test_sets_of_processors() -> None:
    assert parse_set("0-2,5") == {0, 1, 2, 5}
    with pytest.raises(errdefs.InvalidArgument):
        parse_set("2-1")
