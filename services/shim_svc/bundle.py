"""The files of a bundle folder, as docs/contracts.md names them.

Paths are strings here and wherever every shim passes by: pathlib's many small functions are private memory in
each of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import errdefs

PREFIX = "dev.buoy."
PROTOCOL = "ttrpc"
VERSION = 3
OLDEST_VERSION = 2
_PATH_MAX = 107  # bytes of a Unix socket's path, unix(7)


@dataclass(frozen=True)
class Spec:
    """What the shim needs of config.json."""

    container_dir: str
    log_driver: str
    log_path: str
    log_max_size: int
    log_max_file: int
    log_compress: bool
    log_buffer: int | None
    log_attrs: dict[str, str]
    own_pid_namespace: bool


def read_spec(bundle: str) -> Spec:
    """Read config.json; InvalidArgument when it is missing, malformed or holds wrong annotations."""
    try:
        document = json.loads(read_file(f"{bundle}/config.json").decode())
    except OSError as error:
        raise errdefs.InvalidArgument(f"config.json: {error.strerror}") from error
    except ValueError as error:
        raise errdefs.InvalidArgument(f"config.json: {error}") from error
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument("config.json: not an object")
    annotations = document.get("annotations") or {}
    driver = str(annotations.get(PREFIX + "log.driver", "none"))
    path = str(annotations.get(PREFIX + "log.path", ""))
    if driver not in ("json-file", "local", "journald", "none"):
        raise errdefs.InvalidArgument(f"{PREFIX}log.driver: unknown driver {driver!r}")
    if driver in ("json-file", "local") and not os.path.isabs(path):
        raise errdefs.InvalidArgument(f"{PREFIX}log.path: an absolute path is needed")
    namespaces = ((document.get("linux") or {}).get("namespaces")) or []
    return Spec(
        container_dir=str(annotations.get(PREFIX + "container-dir") or bundle),
        log_driver=driver,
        log_path=path,
        log_max_size=_number(annotations, "log.max-size", 0),
        log_max_file=max(1, _number(annotations, "log.max-file", 1)),
        log_compress=annotations.get(PREFIX + "log.compress") == "true",
        log_buffer=_number(annotations, "log.buffer", 0) or None,
        log_attrs=_attrs(annotations),
        own_pid_namespace=any(ns.get("type") == "pid" and not ns.get("path") for ns in namespaces),
    )


def _number(annotations: dict[str, Any], name: str, default: int) -> int:
    text = str(annotations.get(PREFIX + name) or default)
    if not text.isdigit():
        raise errdefs.InvalidArgument(f"{PREFIX}{name}: {text!r} is not a number")
    return int(text)


def _attrs(annotations: dict[str, Any]) -> dict[str, str]:
    text = str(annotations.get(PREFIX + "log.attrs") or "{}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise errdefs.InvalidArgument(f"{PREFIX}log.attrs: {text!r} is not an object of strings")
    return found


@dataclass(frozen=True)
class TaskState:
    """shim.json: what is needed to clean up behind a shim that is gone."""

    namespace: str
    id: str
    runtime: str
    runtime_root: str
    systemd_cgroup: bool
    container_dir: str
    run: int
    status: str
    pid: int
    started_at: str


def write_state(bundle: str, state: TaskState) -> None:
    """Replace shim.json."""
    write_file(f"{bundle}/shim.json", json.dumps(vars(state)))


def read_state(bundle: str) -> TaskState | None:
    """shim.json, or None when it is missing or malformed."""
    try:
        return TaskState(**json.loads(read_file(f"{bundle}/shim.json").decode()))
    except (OSError, ValueError, TypeError):
        return None


def read_file(path: str) -> bytes:
    """The contents of a file, by system calls alone; OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while chunk := os.read(fd, 1 << 20):
            data += chunk
        return data
    finally:
        os.close(fd)


def write_file(path: str, text: str) -> None:
    """Replace a small file in one step; it lies on tmpfs and is not synced."""
    new = f"{path}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    os.rename(new, path)


def task_socket(sockets: str, namespace: str, container: str, bundle: str) -> str:
    """Where the Task socket of this container's shim is; InvalidArgument when the path is too long."""
    digest = hashlib.sha256(f"{namespace}/{container}{bundle}".encode()).hexdigest()[:16]
    path = f"{sockets}/{digest}.t"
    check_socket_path(path)
    return path


def check_socket_path(path: str) -> None:
    """InvalidArgument when no socket can be bound at `path`."""
    if not os.path.isabs(path) or len(os.fsencode(path)) > _PATH_MAX:
        raise errdefs.InvalidArgument(f"socket path {path!r}: must be absolute and at most {_PATH_MAX} bytes")


def bootstrap(address: str, version: int = VERSION) -> str:
    """How to reach the shim, as containerd's bootstrap parameters; `version` is the Task API's."""
    return json.dumps({"version": version, "address": address, "protocol": PROTOCOL}, separators=(",", ":"))


def start_answer(address: str, environ: Mapping[str, str]) -> str:
    """What `start` prints to the caller with this environment: the parameters with the newest version of the
    Task API that it knows (containerd says it in MAX_SHIM_VERSION and refuses a newer one). A containerd
    before 1.7 says none, but has TTRPC_ADDRESS, and takes the bare address only.

    Source: containerd's docs/runtime-v2.md. InvalidArgument for a version that is no number.
    """
    newest = environ.get("MAX_SHIM_VERSION", "")
    if newest:
        if not (newest.isascii() and newest.isdigit() and int(newest) >= OLDEST_VERSION):
            raise errdefs.InvalidArgument(f"MAX_SHIM_VERSION {newest!r}: no version that this shim serves")
        return bootstrap(address, min(VERSION, int(newest)))
    return address if environ.get("TTRPC_ADDRESS") else bootstrap(address)


def remove_file(path: str) -> None:
    """Remove a file that may be missing."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
