"""Is what a client asks for possible? Checked before anything is changed, with Docker's texts
(daemon_unix.go).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import errdefs

from dockerd_api.engine import log_drivers, options, ports, signals
from dockerd_api.engine.host import Host, parse_set
from dockerd_api.engine.model import Container

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")  # the real engine wants two characters
_LEAST_MEMORY = 6 << 20
_MOST_HOSTNAME = 64
_ULIMITS = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_CGROUP_PERMISSIONS = re.compile(r"(?!.*(.).*\1)[rwm]{1,3}\Z")
# The name as one path below /proc/sys: no part is empty, and nothing in it starts another assignment.
_SYSCTL = re.compile(r"(?!.*(?:^|[./])(?:[./]|\Z))[^\s+=\x00-\x1f\x7f]+\Z")
_DEVICE_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})\Z")

Resolve = Callable[[str], Container]


def name(text: str) -> str:
    """A container's name without its slash; InvalidArgument with Docker's text."""
    bare = text.removeprefix("/")
    if not NAME.match(bare):
        raise errdefs.InvalidArgument(
            f"Invalid container name ({text}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    return bare


def config(document: dict[str, Any]) -> None:
    """Checks a decoded Config in place; ExposedPorts come to their full form."""
    if len(document["Hostname"].encode()) > _MOST_HOSTNAME:
        raise errdefs.InvalidArgument(
            f'hostname "{document["Hostname"]}" is too long (maximum {_MOST_HOSTNAME} bytes)'
        )
    if document["WorkingDir"] and not document["WorkingDir"].startswith("/"):
        raise errdefs.InvalidArgument(
            f"the working directory '{document['WorkingDir']}' is invalid, it needs to be an absolute path"
        )
    for entry in document["Env"] or []:
        if entry.partition("=")[0] == "" or "\0" in entry:
            raise errdefs.InvalidArgument(f"invalid environment variable: {entry}")
    if document["StopSignal"]:
        signals.parse(document["StopSignal"])
    if document["ExposedPorts"] is not None:
        document["ExposedPorts"] = ports.exposed(document["ExposedPorts"])
    _healthcheck(document["Healthcheck"])


def _healthcheck(document: Mapping[str, Any] | None) -> None:
    if document is None:
        return
    check = options.decode(document, options.HEALTHCHECK, "ContainerConfigWrapper.Config.Healthcheck")
    for key in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        if check[key] and check[key] < 1_000_000:
            raise errdefs.InvalidArgument(f"{key} in Healthcheck cannot be less than 1ms")
    if check["Retries"] < 0:
        raise errdefs.InvalidArgument("Retries in Healthcheck cannot be negative")
    if check["Test"] not in (None, [], ["NONE"]):
        raise errdefs.NotImplementedHere("option Config.Healthcheck is not implemented")


def host_config(document: dict[str, Any], host: Host, runtimes: Mapping[str, Any]) -> list[str]:
    """Checks a decoded HostConfig and writes Docker's defaults into it; answers the warnings."""
    warnings = _resources(document, host)
    _modes(document)
    _restart_policy(document)
    document["LogConfig"] = log_drivers.check(document["LogConfig"])
    document["PortBindings"] = ports.bindings(document["PortBindings"])
    if document["ShmSize"] < 0:
        raise errdefs.InvalidArgument("SHM size can not be less than 0")
    document["ShmSize"] = document["ShmSize"] or 64 << 20
    if not -1000 <= document["OomScoreAdj"] <= 1000:
        raise errdefs.InvalidArgument(
            f"Invalid value {document['OomScoreAdj']}, range for oom score adj is [-1000, 1000]"
        )
    for entry in document["ExtraHosts"] or []:
        extra_host(entry)
    for server in document["Dns"] or []:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            raise errdefs.InvalidArgument(f"bad nameserver address {server}") from None
    sysctls(document["Sysctls"] or {})
    if "" in (document["Annotations"] or {}):
        raise errdefs.InvalidArgument(
            "invalid Annotations: the empty string is not permitted as an annotation key"
        )
    if document["Isolation"] not in ("", "default"):
        raise errdefs.InvalidArgument(
            f"invalid isolation ({document['Isolation']}): linux only supports 'default'"
        )
    document["Runtime"] = document["Runtime"] or "runc"
    if document["Runtime"] not in runtimes:
        raise errdefs.InvalidArgument(f"unknown or invalid runtime name: {document['Runtime']}")
    document["Devices"] = devices(document["Devices"])
    for rule in document["DeviceCgroupRules"] or []:
        if not _DEVICE_RULE.match(rule):
            raise errdefs.InvalidArgument(f'invalid device cgroup rule format: "{rule}"')
    document["Ulimits"] = ulimits(document["Ulimits"])
    if ".." in document["CgroupParent"].split("/"):
        raise errdefs.InvalidArgument(f"invalid cgroup parent: {document['CgroupParent']}")
    if document["AutoRemove"] and document["RestartPolicy"]["Name"] != "no":
        raise errdefs.InvalidArgument("can't create 'AutoRemove' container with restart policy")
    if document["NetworkMode"] == "host" and document["PortBindings"]:
        warnings.append("Published ports are discarded when using host network mode")
    return warnings


def _resources(document: dict[str, Any], host: Host) -> list[str]:
    warnings: list[str] = []
    _memory(document, host, warnings)
    _processors(document, host)
    if document["OomKillDisable"] is not None:
        if not host.oom_kill_disable:
            if document["OomKillDisable"]:
                warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
            document["OomKillDisable"] = None
        elif document["OomKillDisable"] and not document["Memory"]:
            warnings.append(
                "OOM killer is disabled for the container, but no memory limit is set, this can result in "
                "the system running out of resources."
            )
    elif host.oom_kill_disable:
        document["OomKillDisable"] = False
    return warnings


def _memory(document: dict[str, Any], host: Host, warnings: list[str]) -> None:
    memory, swap, reservation = document["Memory"], document["MemorySwap"], document["MemoryReservation"]
    if memory != 0 and memory < _LEAST_MEMORY:
        raise errdefs.InvalidArgument("Minimum memory limit allowed is 6MB")
    if memory and swap != -1 and not host.swap_accounting:
        warnings.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap."
        )
        swap = document["MemorySwap"] = -1
    if 0 < swap < memory:
        raise errdefs.InvalidArgument(
            "Minimum memoryswap limit should be larger than memory limit, see usage"
        )
    if swap < -1:
        raise errdefs.InvalidArgument(f"invalid memoryswap limit: {swap}")
    if memory == 0 and swap > 0:
        raise errdefs.InvalidArgument(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    swappiness = document["MemorySwappiness"]
    if swappiness == -1:
        swappiness = document["MemorySwappiness"] = None
    if swappiness is not None and not 0 <= swappiness <= 100:
        raise errdefs.InvalidArgument(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if swappiness is not None and not host.swappiness:
        warnings.append(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
            "Memory swappiness discarded."
        )
        document["MemorySwappiness"] = None
    if reservation != 0 and reservation < _LEAST_MEMORY:
        raise errdefs.InvalidArgument("Minimum memory reservation allowed is 6MB")
    if memory and reservation > memory:
        raise errdefs.InvalidArgument(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )
    if memory and swap == 0:
        document["MemorySwap"] = 2 * memory


def _processors(document: dict[str, Any], host: Host) -> None:
    nano, period, quota = document["NanoCpus"], document["CpuPeriod"], document["CpuQuota"]
    if nano > 0 and period > 0:
        raise errdefs.InvalidArgument("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano > 0 and quota > 0:
        raise errdefs.InvalidArgument("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if not 0 <= nano <= host.processors * 10**9:
        raise errdefs.InvalidArgument(
            f"Range of CPUs is from 0.01 to {host.processors}.00, as there are only {host.processors} CPUs "
            "available"
        )
    if document["CpuShares"] < 0:
        raise errdefs.InvalidArgument(
            f"invalid CPU shares ({document['CpuShares']}): value must be a positive integer"
        )
    if period != 0 and not 1000 <= period <= 1_000_000:
        raise errdefs.InvalidArgument(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < quota < 1000:
        raise errdefs.InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    for key, what, things, offered in (
        ("CpusetCpus", "cpuset cpus", "CPUs", host.cpus),
        ("CpusetMems", "cpuset mems", "memory nodes", host.memory_nodes),
    ):
        try:
            wanted = parse_set(document[key])
        except errdefs.InvalidArgument as error:
            raise errdefs.InvalidArgument(f"Invalid value {document[key]} for {what}: {error}") from None
        if not wanted <= parse_set(offered):
            raise errdefs.InvalidArgument(
                f"Requested {things} are not available - requested {document[key]}, available: {offered}"
            )


def _modes(document: dict[str, Any]) -> None:
    mode = document["NetworkMode"]
    document["NetworkMode"] = "bridge" if mode in ("", "default") else mode
    if mode == "container:":
        raise errdefs.InvalidArgument("Invalid network mode: invalid container format container:<name|id>")
    for key, what, words, joins in (
        ("IpcMode", "IPC mode", ("", "none", "private", "shareable", "host"), True),
        ("PidMode", "PID mode", ("", "host"), True),
        ("UTSMode", "UTS mode", ("", "host"), False),
        ("CgroupnsMode", "cgroup namespace mode", ("", "private", "host"), False),
        ("UsernsMode", "user namespace mode", ("", "host"), False),
    ):
        text = document[key]
        if text not in words and not (joins and re.match(r"container:.", text)):
            raise errdefs.InvalidArgument(f"invalid {what}: {text}")
    document["IpcMode"] = document["IpcMode"] or "private"


def combinations(config: Mapping[str, Any], host_config: Mapping[str, Any]) -> None:
    """Refuses what Config and HostConfig cannot both ask for; called before defaults are written in."""
    hostname = config["Hostname"]
    if host_config["UTSMode"] == "host" and hostname:
        raise errdefs.InvalidArgument("conflicting options: hostname and the UTS mode")
    if not host_config["NetworkMode"].startswith("container:"):
        return
    for given, what in (
        (hostname, "hostname and the network mode"),
        (host_config["Links"], "container type network can't be used with links"),
        (host_config["Dns"], "dns and the network mode"),
        (host_config["ExtraHosts"], "custom host-to-IP mapping and the network mode"),
        (config["MacAddress"], "mac-address and the network mode"),
        (host_config["PortBindings"], "port publishing and the container type network mode"),
        (host_config["PublishAllPorts"], "port publishing and the container type network mode"),
        (config["ExposedPorts"], "port exposing and the container type network mode"),
    ):
        if given:
            raise errdefs.InvalidArgument(f"conflicting options: {what}")


def shared_namespaces(document: dict[str, Any], resolve: Resolve) -> None:
    """Checks the containers whose namespaces are joined, and replaces their names by ids."""
    for key in ("PidMode", "IpcMode", "NetworkMode"):
        kind, colon, ref = document[key].partition(":")
        if kind != "container" or not colon:
            continue
        try:
            donor = resolve(ref)
        except errdefs.NotFound as error:
            if key == "NetworkMode":  # said at the start, as in Docker
                continue
            raise errdefs.InvalidArgument(error.message) from None
        document[key] = f"container:{donor.id}"


def _restart_policy(document: dict[str, Any]) -> None:
    policy = options.decode(
        document["RestartPolicy"] or {}, options.RESTART_POLICY, "HostConfig.RestartPolicy"
    )
    policy["Name"] = policy["Name"] or "no"
    kind, count = policy["Name"], policy["MaximumRetryCount"]
    if kind not in ("no", "always", "on-failure", "unless-stopped"):
        raise errdefs.InvalidArgument(
            f"invalid restart policy: unknown policy '{kind}'; use one of 'no', 'always', 'on-failure', "
            "or 'unless-stopped'"
        )
    if count and kind != "on-failure":
        problem = "maximum retry count can only be used with 'on-failure'"
        problem += " and cannot be negative" if count < 0 else ""
        raise errdefs.InvalidArgument(f"invalid restart policy: {problem}")
    if count < 0:
        raise errdefs.InvalidArgument("invalid restart policy: maximum retry count cannot be negative")
    document["RestartPolicy"] = policy


def extra_host(entry: str) -> tuple[str, str]:
    """Name and address ("host-gateway" included) of "name:address"; InvalidArgument with Docker's text."""
    found = re.match(r"([^:=]+)[:=](.+)\Z", entry)
    if not found:
        raise errdefs.InvalidArgument(f'bad format for add-host: "{entry}"')
    if found[2] != "host-gateway":
        try:
            ipaddress.ip_address(found[2].strip("[]"))
        except ValueError:
            raise errdefs.InvalidArgument(f'invalid IP address in add-host: "{found[2]}"') from None
    return found[1], found[2]


def sysctls(values: Mapping[str, str]) -> None:
    """Refuses what could write another kernel parameter than the one that is named (CVE-2024-3154). Which may
    be set at all, the runtime decides.
    """
    for key, value in values.items():
        if not _SYSCTL.match(key):
            raise errdefs.InvalidArgument(f"invalid sysctl: {json.dumps(key)} is not a name")
        if "\n" in value or "\0" in value:
            raise errdefs.InvalidArgument(f"invalid sysctl: the value of {key} is not one line")


def devices(documents: Any) -> list[dict[str, Any]] | None:
    """Devices decoded; the path in the container and the permissions are filled in."""
    if documents is None:
        return None
    decoded = options.decode_list(documents, options.DEVICE, "HostConfig.Devices")
    for device in decoded:
        device["PathInContainer"] = device["PathInContainer"] or device["PathOnHost"]
        device["CgroupPermissions"] = device["CgroupPermissions"] or "rwm"
        if not _CGROUP_PERMISSIONS.match(device["CgroupPermissions"]):
            raise errdefs.InvalidArgument(f"invalid device permissions: {device['CgroupPermissions']}")
        if not device["PathOnHost"].startswith("/") or not device["PathInContainer"].startswith("/"):
            raise errdefs.InvalidArgument(f"{device['PathOnHost']} is not an absolute path")
    return decoded


def ulimits(documents: Any) -> list[dict[str, Any]] | None:
    """Ulimits decoded and checked."""
    if documents is None:
        return None
    decoded = options.decode_list(documents, options.ULIMIT, "HostConfig.Ulimits")
    for limit in decoded:
        if limit["Name"] not in _ULIMITS:
            raise errdefs.InvalidArgument(f"invalid ulimit type: {limit['Name']}")
        if limit["Hard"] != -1 and (limit["Soft"] > limit["Hard"] or limit["Soft"] == -1):
            raise errdefs.InvalidArgument(
                "ulimit soft limit must be less than or equal to hard limit: "
                f"{limit['Soft']} > {limit['Hard']}"
            )
    return decoded


def device_rule(text: str) -> dict[str, Any]:
    """A checked rule such as "c 1:3 rwm" as the runtime specification has it."""
    found = _DEVICE_RULE.match(text)
    if found is None:
        raise errdefs.InvalidArgument(f'invalid device cgroup rule format: "{text}"')
    rule: dict[str, Any] = {"allow": True, "type": found[1], "access": found[4]}
    for key, number in (("major", found[2]), ("minor", found[3])):
        if number != "*":
            rule[key] = int(number)
    return rule
