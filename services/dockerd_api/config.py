"""The daemon's configuration: flags and `daemon.json`, with Docker's names, defaults and refusals.

(https://docs.docker.com/reference/cli/dockerd/) A key or flag that is not honoured is refused, never ignored.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import errdefs

VERSION = "28.2.2+buoy0.1.0"
API_VERSION, LEAST_API_VERSION = (1, 50), (1, 24)

# Flag, key of daemon.json, type, default, help.
_OPTIONS: tuple[tuple[str, str, str, Any, str], ...] = (
    ("--host", "hosts", "list", (), "socket to listen on (fd://, unix://PATH)"),
    ("--containerd", "containerd", "str", "/run/buoy/containerd.sock", "containerd's gRPC socket"),
    ("--containerd-namespace", "containerd-namespace", "str", "moby", "containerd's namespace"),
    ("--data-root", "data-root", "str", "/var/lib/buoy/docker", "folder of lasting state"),
    ("--exec-root", "exec-root", "str", "/run/buoy/docker", "folder of state that a boot clears"),
    ("--sockets", "sockets", "str", "/run/buoy/s", "folder of the shims' sockets"),
    ("--instance", "instance", "str", "", "tells this engine's names on the host from another's"),
    ("--pidfile", "pidfile", "str", "", "file to write the process id to"),
    ("--debug", "debug", "bool", False, "log more"),
    ("--log-level", "log-level", "str", "info", "debug, info, warn, error, fatal"),
    ("--label", "labels", "list", (), "key=value labels of the daemon"),
    ("--init", "init", "bool", False, "run an init in every container"),
    ("--init-path", "init-path", "str", "", "the init binary"),
    ("--cgroup-parent", "cgroup-parent", "str", "", "parent cgroup of containers"),
    ("--default-cgroup-parent", "default-cgroup-parent", "str", "", "the same, where nothing else says it"),
    ("--default-runtime", "default-runtime", "str", "runc", "runtime of containers that name none"),
    ("--default-shm-size", "default-shm-size", "size", 64 << 20, "size of /dev/shm"),
    ("--default-cgroupns-mode", "default-cgroupns-mode", "str", "", "host or private"),
    ("--default-ipc-mode", "default-ipc-mode", "str", "private", "private or shareable"),
    ("--log-driver", "log-driver", "str", "json-file", "json-file, local, journald or none"),
    ("--log-opt", "log-opts", "map", {}, "options of the log driver"),
    ("--seccomp-profile", "seccomp-profile", "str", "builtin", "builtin, unconfined or a file"),
    ("--no-new-privileges", "no-new-privileges", "bool", False, "set it for every container"),
    ("--bridge", "bridge", "str", "", "bridge to use, or none"),
    ("--bip", "bip", "str", "", "address of the bridge"),
    ("--fixed-cidr", "fixed-cidr", "str", "", "addresses for containers"),
    ("--default-gateway", "default-gateway", "str", "", "gateway of containers"),
    ("--mtu", "mtu", "int", 0, "MTU of the bridge"),
    ("--ip", "ip", "str", "", "host address of published ports"),
    ("--icc", "icc", "bool", True, "containers reach one another"),
    ("--ip-forward", "ip-forward", "bool", True, "switch forwarding on"),
    ("--ip-masq", "ip-masq", "bool", True, "masquerade what leaves the bridge"),
    ("--iptables", "iptables", "bool", True, "write firewall rules"),
    ("--userland-proxy", "userland-proxy", "bool", True, "proxy what no rule takes"),
    ("--dns", "dns", "list", (), "name servers"),
    ("--dns-search", "dns-search", "list", (), "search domains"),
    ("--dns-opt", "dns-opts", "list", (), "resolver options"),
    ("--host-gateway-ip", "host-gateway-ip", "str", "", "address of host-gateway"),
    (
        "--insecure-registry",
        "insecure-registries",
        "list",
        (),
        "host or network to reach without checked TLS",
    ),
    ("--registry-mirror", "registry-mirrors", "list", (), "mirror of Docker Hub"),
    (
        "--registry-certs-dir",
        "registry-certs-dir",
        "str",
        "/etc/docker/certs.d",
        "certificates of registries",
    ),
    ("--max-concurrent-downloads", "max-concurrent-downloads", "int", 3, "layers of a pull at a time"),
    ("--max-concurrent-uploads", "max-concurrent-uploads", "int", 5, "layers of a push at a time"),
    ("--http-proxy", "http-proxy", "str", "", "proxy for plain HTTP"),
    ("--https-proxy", "https-proxy", "str", "", "proxy for HTTPS"),
    ("--no-proxy", "no-proxy", "str", "", "hosts that are reached directly"),
)
# In the file these stand below "proxies".
PROXIES = ("http-proxy", "https-proxy", "no-proxy")
# Keys without a flag here, or whose form in the file is richer.
_FILE_ONLY = {
    "runtimes": dict,
    "default-ulimits": dict,
    "default-address-pools": list,
    "ip-forward-no-drop": bool,
    "live-restore": bool,
    "features": dict,
    "host-gateway-ips": list,
    "firewall-backend": str,
    "resolv-conf": str,
    "per-registry-mirrors": dict,
}


@dataclass(frozen=True, slots=True)
class Config:
    """`values` holds every option by its key in daemon.json, set or default; `file` only what the file
    says.
    """

    values: Mapping[str, Any]
    file: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def cgroup_parent(self) -> str:
        """docs/contracts.md, Places."""
        given = str(self.values["cgroup-parent"] or self.values["default-cgroup-parent"])
        instance = self.values["instance"]
        return given or (f"/buoy-{instance}" if instance else "/docker")

    @property
    def socket_path(self) -> str:
        """Where to listen when no manager passes the socket."""
        for host in self.values["hosts"]:
            if host.startswith("unix://"):
                return str(host.removeprefix("unix://"))
        return "/run/docker.sock"


def parse(argv: Sequence[str]) -> Config:
    """The configuration from the command line and the file that it names; InvalidArgument with Docker's
    texts.
    """
    parser = _Parser(prog="dockerd-api", allow_abbrev=False, description="The Docker Engine API of Buoy.")
    parser.add_argument("--config-file", default="/etc/buoy/daemon.json", help="daemon.json")
    parser.add_argument("--validate", action="store_true", help="check the configuration and end")
    parser.add_argument("-v", "--version", action="version", version=f"dockerd-api {VERSION}")
    for flag, key, kind, _, text in _OPTIONS:
        names = {
            "--host": ("-H", "--host"),
            "--debug": ("-D", "--debug"),
            "--log-level": ("-l", "--log-level"),
        }
        action = "append" if kind in ("list", "map") else "store"
        extra: dict[str, Any] = {"nargs": "?", "const": "true"} if kind == "bool" else {}
        parser.add_argument(
            *names.get(flag, (flag,)), dest=key, action=action, default=None, help=text, **extra
        )
    arguments = vars(parser.parse_args(list(argv)))
    path = arguments.pop("config_file")
    validate = arguments.pop("validate")
    explicit = any(word == "--config-file" or word.startswith("--config-file=") for word in argv)
    file = _read(path, explicit and path != "/etc/buoy/daemon.json")
    given = {key: value for key, value in arguments.items() if value is not None}
    _no_conflicts(given, file, path)
    values: dict[str, Any] = {key: default for _, key, _, default, _ in _OPTIONS}
    for flag, key, kind, _, _ in _OPTIONS:
        if key in given:
            values[key] = _from_flag(flag, kind, given[key])
        elif key in file:
            values[key] = _from_file(key, kind, file[key])
    for key, type_ in _FILE_ONLY.items():
        values[key] = type_() if key not in file else _typed(key, file[key], type_)
    _check(values)
    if validate:
        print("configuration OK")
        raise SystemExit(0)
    return Config(values, {**file, **{key: values[key] for key in given}})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise errdefs.InvalidArgument(message)


def _read(path: str, must_exist: bool) -> dict[str, Any]:
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        if must_exist:
            raise errdefs.InvalidArgument(
                f"unable to configure the Docker daemon with file {path}: "
                f"open {path}: no such file or directory"
            ) from None
        return {}
    wrong = f"unable to configure the Docker daemon with file {path}: "
    if not text.strip():
        return {}
    try:
        document = json.loads(text)
    except ValueError as error:
        raise errdefs.InvalidArgument(f"{wrong}invalid JSON: {error}") from None
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument(f"{wrong}invalid JSON: not an object")
    known = ({key for _, key, _, _, _ in _OPTIONS} | set(_FILE_ONLY) | {"proxies"}) - set(PROXIES)
    unknown = sorted(set(document) - known)
    proxies = _typed("proxies", document.pop("proxies", {}), dict)
    unknown += sorted(f"proxies.{key}" for key in set(proxies) - set(PROXIES))
    if unknown:
        raise errdefs.InvalidArgument(
            f"{wrong}the following directives don't match any configuration option: {', '.join(unknown)}"
        )
    return {**document, **proxies}


def _no_conflicts(given: Mapping[str, Any], file: Mapping[str, Any], path: str) -> None:
    both = [key for key in given if key in file and key not in ("labels",)]
    if both:
        pairs = ", ".join(
            f"{key}: (from flag: {_show(given[key])}, from file: {_show(file[key])})" for key in both
        )
        raise errdefs.InvalidArgument(
            f"unable to configure the Docker daemon with file {path}: the following directives are specified "
            f"both as a flag and in the configuration file: {pairs}"
        )


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _from_flag(flag: str, kind: str, value: Any) -> Any:
    match kind:
        case "bool":
            if value.lower() not in ("true", "false", "1", "0", "t", "f"):
                raise errdefs.InvalidArgument(f'invalid argument "{value}" for "{flag}" flag')
            return value.lower() in ("true", "1", "t")
        case "int":
            if not value.lstrip("-").isdecimal():
                raise errdefs.InvalidArgument(f'invalid argument "{value}" for "{flag}" flag')
            return int(value)
        case "size":
            return size(value)
        case "list":
            return tuple(value)
        case "map":
            pairs = [entry.partition("=") for entry in value]
            return {key: text for key, _, text in pairs}
    return value


def _from_file(key: str, kind: str, value: Any) -> Any:
    types: dict[str, type] = {"bool": bool, "int": int, "list": list, "map": dict, "str": str}
    if kind == "size":
        return value if isinstance(value, int) else size(str(value))
    _typed(key, value, types[kind])
    return tuple(value) if kind == "list" else value


def _typed(key: str, value: Any, type_: type) -> Any:
    if not isinstance(value, type_) or (type_ is int and isinstance(value, bool)):
        raise errdefs.InvalidArgument(f"daemon.json: {key}: not of type {type_.__name__}")
    return value


def size(text: str) -> int:
    """Bytes of "64M", "1g" or "1024" (units of 1024, as Docker's RAMInBytes)."""
    body = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = body[-1:] if body[-1:] in tuple("kmgtp") else ""
    try:
        number = float(body.removesuffix(unit) if unit else body)
    except ValueError:
        raise errdefs.InvalidArgument(f"invalid size: '{text}'") from None
    if number < 0:
        raise errdefs.InvalidArgument(f"invalid size: '{text}'")
    return int(number * (1024 ** (" kmgtp".index(unit) if unit else 0)))


def _check(values: Mapping[str, Any]) -> None:
    for host in values["hosts"]:
        if not host.startswith(("unix://", "fd://")):
            raise errdefs.NotImplementedHere(f"listening on {host} is not implemented; unix:// and fd:// are")
    if values["default-ipc-mode"] not in ("private", "shareable"):
        raise errdefs.InvalidArgument(f"IPC mode {values['default-ipc-mode']} is not supported")
    if values["log-level"] not in ("debug", "info", "warn", "error", "fatal"):
        raise errdefs.InvalidArgument(f"invalid logging level: {values['log-level']}")
    if values["default-cgroupns-mode"] not in ("", "host", "private"):
        raise errdefs.InvalidArgument(f"invalid default cgroup namespace ({values['default-cgroupns-mode']})")
    for feature, on in values["features"].items():
        if on and feature != "containerd-snapshotter":
            raise errdefs.NotImplementedHere(f"daemon.json: features: {feature} is not implemented")
    for label in values["labels"]:
        if "=" not in label:
            raise errdefs.InvalidArgument(f"bad attribute format: {label}")
    for what in ("downloads", "uploads"):
        if values[f"max-concurrent-{what}"] < 0:
            raise errdefs.InvalidArgument(
                f"invalid max concurrent {what}: {values[f'max-concurrent-{what}']}"
            )
    runtimes(values)


def runtimes(values: Mapping[str, Any]) -> dict[str, str]:
    """Runtime names and their binaries ("" is the built-in one)."""
    found = {"runc": "", "io.containerd.runc.v2": ""}
    for name, spec in values["runtimes"].items():
        if not isinstance(spec, dict):
            raise errdefs.InvalidArgument(f"daemon.json: runtimes: {name}: not an object")
        if name in found:
            raise errdefs.InvalidArgument(f"runtime name '{name}' is reserved")
        unknown = set(spec) - {"path", "runtimeArgs", "runtimeType", "options"}
        if unknown or spec.get("runtimeArgs") or spec.get("runtimeType") or spec.get("options"):
            raise errdefs.NotImplementedHere(f"daemon.json: runtimes: {name}: only path is implemented")
        path = spec.get("path")
        if not isinstance(path, str) or not path:
            raise errdefs.InvalidArgument(
                f"runtime {name}: either a runtimeType or a path must be configured"
            )
        found[name] = path
    if values["default-runtime"] not in found:
        raise errdefs.InvalidArgument(
            f'specified default runtime "{values["default-runtime"]}" does not exist'
        )
    return found


def ulimits(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """default-ulimits as the API's documents."""
    found = []
    for name, spec in values["default-ulimits"].items():
        if not isinstance(spec, dict):
            raise errdefs.InvalidArgument(f"daemon.json: default-ulimits: {name}: not an object")
        low = {key.lower(): value for key, value in spec.items()}
        found.append({"Name": name, "Soft": int(low.get("soft", 0)), "Hard": int(low.get("hard", 0))})
    return found


def command_line(argv: Sequence[str]) -> str:
    """For the log."""
    return shlex.join([os.path.basename(argv[0]), *argv[1:]]) if argv else ""
