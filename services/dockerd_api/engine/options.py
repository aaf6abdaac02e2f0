"""Every option of a container that a client may send, and what becomes of it: one table per document.

A field is HONOURED, or REFUSED unless it has its default value (what is not built is said, never ignored), or
UNUSED because Docker on Linux stores it and does nothing with it either. Fields that no table names are
dropped, as Go's JSON decoder drops them. Names match without regard to case, as Go's do.
(https://docs.docker.com/reference/api/engine/version/v1.50/, ContainerCreate)
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import errdefs


class Rule(enum.Enum):
    HONOURED = "honoured"
    REFUSED = "refused unless default"
    UNUSED = "stored and without effect, as in Docker on Linux"


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `kind` is the Go type that the error text names; `default` is its value when absent or
    null.
    """

    kind: str
    default: Any
    rule: Rule = Rule.HONOURED


_H, _R, _U = Rule.HONOURED, Rule.REFUSED, Rule.UNUSED
_STRING, _BOOL, _INT = Field("string", ""), Field("bool", False), Field("int64", 0)
_STRINGS, _MAP = Field("[]string", None), Field("map[string]string", None)

CONFIG: Mapping[str, Field] = {
    "Hostname": _STRING,
    "Domainname": _STRING,
    "User": _STRING,
    "AttachStdin": _BOOL,
    "AttachStdout": _BOOL,
    "AttachStderr": _BOOL,
    "ExposedPorts": Field("map[string]struct {}", None),
    "Tty": _BOOL,
    "OpenStdin": _BOOL,
    "StdinOnce": _BOOL,
    "Env": _STRINGS,
    "Cmd": Field("strslice", None),
    "Healthcheck": Field("object", None),
    "ArgsEscaped": Field("bool", False, _U),
    "Image": _STRING,
    "Volumes": Field("map[string]struct {}", None),
    "WorkingDir": _STRING,
    "Entrypoint": Field("strslice", None),
    "NetworkDisabled": Field("bool", False, _R),
    "MacAddress": _STRING,
    "OnBuild": Field("[]string", None, _U),
    "Labels": _MAP,
    "StopSignal": _STRING,
    "StopTimeout": Field("*int", None),
    "Shell": Field("strslice", None, _U),
}

HOST_CONFIG: Mapping[str, Field] = {
    "Binds": _STRINGS,
    "ContainerIDFile": Field("string", "", _U),
    "LogConfig": Field("object", None),
    "NetworkMode": _STRING,
    "PortBindings": Field("object", None),
    "RestartPolicy": Field("object", None),
    "AutoRemove": _BOOL,
    "VolumeDriver": Field("string", "", _R),
    "VolumesFrom": Field("[]string", None, _R),
    "ConsoleSize": Field("[2]uint", [0, 0]),
    "Annotations": _MAP,
    "CapAdd": Field("strslice", None),
    "CapDrop": Field("strslice", None),
    "CgroupnsMode": _STRING,
    "Dns": _STRINGS,
    "DnsOptions": _STRINGS,
    "DnsSearch": _STRINGS,
    "ExtraHosts": _STRINGS,
    "GroupAdd": _STRINGS,
    "IpcMode": _STRING,
    "Cgroup": Field("string", "", _R),
    "Links": Field("[]string", None, _R),
    "OomScoreAdj": _INT,
    "PidMode": _STRING,
    "Privileged": _BOOL,
    "PublishAllPorts": _BOOL,
    "ReadonlyRootfs": _BOOL,
    "SecurityOpt": _STRINGS,
    "StorageOpt": Field("map[string]string", None, _R),
    "Tmpfs": _MAP,
    "UTSMode": _STRING,
    "UsernsMode": _STRING,
    "ShmSize": _INT,
    "Sysctls": _MAP,
    "Runtime": _STRING,
    "Isolation": _STRING,
    "CpuShares": _INT,
    "Memory": _INT,
    "NanoCpus": _INT,
    "CgroupParent": _STRING,
    "BlkioWeight": Field("uint16", 0, _R),
    "BlkioWeightDevice": Field("[]object", None, _R),
    "BlkioDeviceReadBps": Field("[]object", None, _R),
    "BlkioDeviceWriteBps": Field("[]object", None, _R),
    "BlkioDeviceReadIOps": Field("[]object", None, _R),
    "BlkioDeviceWriteIOps": Field("[]object", None, _R),
    "CpuPeriod": _INT,
    "CpuQuota": _INT,
    "CpuRealtimePeriod": Field("int64", 0, _R),
    "CpuRealtimeRuntime": Field("int64", 0, _R),
    "CpusetCpus": _STRING,
    "CpusetMems": _STRING,
    "Devices": Field("[]object", None),
    "DeviceCgroupRules": _STRINGS,
    "DeviceRequests": Field("[]object", None, _R),
    "KernelMemory": Field("int64", 0, _U),
    "KernelMemoryTCP": Field("int64", 0, _R),
    "MemoryReservation": _INT,
    "MemorySwap": _INT,
    "MemorySwappiness": Field("*int64", None),
    "OomKillDisable": Field("*bool", None),
    "Init": Field("*bool", None),
    "PidsLimit": Field("*int64", None),
    "Ulimits": Field("[]object", None),
    "CpuCount": Field("int64", 0, _U),
    "CpuPercent": Field("int64", 0, _U),
    "IOMaximumIOps": Field("uint64", 0, _R),
    "IOMaximumBandwidth": Field("uint64", 0, _R),
    "Mounts": Field("[]object", None),
    "MaskedPaths": _STRINGS,
    "ReadonlyPaths": _STRINGS,
}

NETWORKING_CONFIG: Mapping[str, Field] = {"EndpointsConfig": Field("object", None)}

# The fields behind NetworkID are the engine's answers; a client that sends them back is not asking for
# anything.
ENDPOINT: Mapping[str, Field] = {
    "IPAMConfig": Field("object", None),
    "Links": Field("[]string", None, _R),
    "Aliases": _STRINGS,
    "MacAddress": _STRING,
    "DriverOpts": Field("map[string]string", None, _R),
    "GwPriority": _INT,
    "NetworkID": Field("string", "", _U),
    "EndpointID": Field("string", "", _U),
    "Gateway": Field("string", "", _U),
    "IPAddress": Field("string", "", _U),
    "IPPrefixLen": Field("int64", 0, _U),
    "IPv6Gateway": Field("string", "", _U),
    "GlobalIPv6Address": Field("string", "", _U),
    "GlobalIPv6PrefixLen": Field("int64", 0, _U),
    "DNSNames": Field("[]string", None, _U),
}

EXEC_CONFIG: Mapping[str, Field] = {
    "User": _STRING,
    "Privileged": _BOOL,
    "Tty": _BOOL,
    "ConsoleSize": Field("*[2]uint", None),
    "AttachStdin": _BOOL,
    "AttachStderr": _BOOL,
    "AttachStdout": _BOOL,
    "Detach": Field("bool", False, _U),
    "DetachKeys": _STRING,
    "Env": _STRINGS,
    "WorkingDir": _STRING,
    "Cmd": _STRINGS,
}

EXEC_START: Mapping[str, Field] = {
    "Detach": _BOOL,
    "Tty": _BOOL,
    "ConsoleSize": Field("*[2]uint", None),
}

LOG_CONFIG: Mapping[str, Field] = {"Type": _STRING, "Config": _MAP}
RESTART_POLICY: Mapping[str, Field] = {"Name": _STRING, "MaximumRetryCount": _INT}
DEVICE: Mapping[str, Field] = {
    "PathOnHost": _STRING,
    "PathInContainer": _STRING,
    "CgroupPermissions": _STRING,
}
ULIMIT: Mapping[str, Field] = {"Name": _STRING, "Soft": _INT, "Hard": _INT}
MOUNT: Mapping[str, Field] = {
    "Type": _STRING,
    "Source": _STRING,
    "Target": _STRING,
    "ReadOnly": _BOOL,
    "Consistency": Field("string", "", _U),
    "BindOptions": Field("object", None),
    "VolumeOptions": Field("object", None),
    "ImageOptions": Field("object", None),
    "TmpfsOptions": Field("object", None),
    "ClusterOptions": Field("object", None),
}
BIND_OPTIONS: Mapping[str, Field] = {
    "Propagation": _STRING,
    "NonRecursive": _BOOL,
    "CreateMountpoint": _BOOL,
    "ReadOnlyNonRecursive": _BOOL,
    "ReadOnlyForceRecursive": _BOOL,
}
TMPFS_OPTIONS: Mapping[str, Field] = {
    "SizeBytes": _INT,
    "Mode": Field("uint32", 0),
    "Options": Field("[][]string", None),
}
PORT_BINDING: Mapping[str, Field] = {"HostIp": _STRING, "HostPort": _STRING}
IPAM_CONFIG: Mapping[str, Field] = {
    "IPv4Address": _STRING,
    "IPv6Address": Field("string", "", _R),
    "LinkLocalIPs": Field("[]string", None, _R),
}
HEALTHCHECK: Mapping[str, Field] = {
    "Test": _STRINGS,
    "Interval": _INT,
    "Timeout": _INT,
    "StartPeriod": _INT,
    "StartInterval": _INT,
    "Retries": _INT,
}

_JSON_NAMES: tuple[tuple[type, str], ...] = (
    (bool, "bool"),
    (int, "number"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)


def decode(document: Mapping[str, Any], table: Mapping[str, Field], where: str) -> dict[str, Any]:
    """The document with every field of the table, its type checked and its rule applied.

    `where` is the Go path of the document for error texts, such as "HostConfig". InvalidArgument for a
    wrong type, NotImplementedHere for a REFUSED field with another value than its default.
    """
    names = {name.lower(): name for name in table}
    given: dict[str, Any] = {}
    for key, value in document.items():
        name = names.get(key.lower())
        if name is not None and (name not in given or key == name):
            given[name] = value
    decoded: dict[str, Any] = {}
    for name, field in table.items():
        value = given.get(name)
        if value is None:
            decoded[name] = copy.copy(field.default)
            continue
        value = _typed(value, field.kind, f"{where}.{name}")
        if field.rule is Rule.REFUSED and value not in (field.default, [], {}):
            raise errdefs.NotImplementedHere(f"option {where}.{name} is not implemented")
        decoded[name] = value
    return decoded


def decode_list(documents: Any, table: Mapping[str, Field], where: str) -> list[dict[str, Any]]:
    """Each element of a list decoded by the table."""
    return [decode(element, table, where) for element in documents or ()]


def _wrong(value: Any, kind: str, where: str) -> errdefs.InvalidArgument:
    name = next((word for type_, word in _JSON_NAMES if isinstance(value, type_)), "null")
    return errdefs.InvalidArgument(
        f"invalid JSON: json: cannot unmarshal {name} into Go struct field {where} of type {kind}"
    )


def _typed(value: Any, kind: str, where: str) -> Any:
    match kind.removeprefix("*"):
        case "string" if isinstance(value, str):
            return value
        case "bool" if isinstance(value, bool):
            return value
        case "int64" | "int" if _whole(value, -(2**63), 2**63):
            return value
        case "uint64" if _whole(value, 0, 2**64):
            return value
        case "uint32" if _whole(value, 0, 2**32):
            return value
        case "uint16" if _whole(value, 0, 2**16):
            return value
        case "strslice":
            return _strslice(value, where)
        case "[]string":
            return [_typed(element, "string", where) for element in _a(list, value, kind, where)]
        case "[][]string":
            return [_typed(element, "[]string", where) for element in _a(list, value, kind, where)]
        case "[]object":
            return [_typed(element, "object", where) for element in _a(list, value, kind, where)]
        case "[2]uint":
            sizes = [_typed(element, "uint32", where) for element in _a(list, value, kind, where)]
            return [*sizes, 0, 0][:2]
        case "map[string]string":
            pairs = _a(dict, value, kind, where)
            return {key: "" if text is None else _typed(text, "string", where) for key, text in pairs.items()}
        case "map[string]struct {}":
            return {key: {} for key in _a(dict, value, kind, where)}
        case "object":
            return _a(dict, value, kind, where)
    raise _wrong(value, kind.removeprefix("*"), where)


def _whole(value: Any, least: int, beyond: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < beyond


def _a(type_: type, value: Any, kind: str, where: str) -> Any:
    if not isinstance(value, type_):
        raise _wrong(value, kind, where)
    return value


def _strslice(value: Any, where: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _wrong(value, "string", where)
    return [_typed(element, "string", where) for element in value]
