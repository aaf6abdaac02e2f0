"""The bundle folder of a task, `<state>/<namespace>/<id>/` (docs/contracts.md): what is written before a shim
is asked for.

The folder is the intent: it exists before anything else of the task does, and goes last.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import errdefs
from linux.crashpoints import crashpoint
from linux.syscalls import umount2
from pb.containerd.task.v2 import CreateTaskRequest
from pb.containerd.types import Mount
from pb.google.protobuf import Any as AnyMessage

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # umount2(2)
_TRASH = ".trash"
_FOREIGN = "shim-binary-path"  # as containerd has it


@dataclass(frozen=True)
class TaskRecord:
    """task.json: all that a restart of the task or of this daemon needs.

    `key` names this life of the container's task: another task of the same id has another. `call_key` is the
    caller's name for its Create call, empty when it gave none; `shim` the path of a shim that is not ours.
    """

    request: CreateTaskRequest
    runtime: str
    call_key: str = ""
    shim: str = ""
    key: str = field(default_factory=lambda: secrets.token_hex(16))


class Bundle:
    """One bundle folder. All of it lies on a tmpfs, so that nothing here is synced."""

    def __init__(self, state: Path, namespace: str, container_id: str) -> None:
        self.namespace = namespace
        self.id = container_id
        self.path = state / namespace / container_id

    def create(self, spec: bytes, record: TaskRecord) -> None:
        """Make the folder and write what the shim needs. Raises AlreadyExists when the folder is there."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError as error:
            raise errdefs.AlreadyExists(f"bundle {self.path}: already exists") from error
        crashpoint("containerd.bundle.made")
        (self.path / "rootfs").mkdir(mode=0o711)
        _write(self.path / "config.json", spec)
        if record.shim:
            _write(self.path / _FOREIGN, record.shim.encode())
        _write(self.path / "task.json", json.dumps(_document(record)).encode())
        crashpoint("containerd.bundle.written")

    def record(self) -> TaskRecord | None:
        """task.json, or None when the folder was not finished."""
        try:
            return _record(json.loads((self.path / "task.json").read_bytes()))
        except (OSError, ValueError, KeyError):
            return None

    def mark(self, step: str, call_key: str, *, done: bool) -> None:
        """Note that the call `step` ("create", "start") of the caller's key has begun, or has its result."""
        _write(self.path / f"{step}.call", json.dumps({"key": call_key, "done": done}).encode())

    def marked(self, step: str) -> tuple[str, bool] | None:
        """The caller's key and whether the call had its result; None when it never began."""
        try:
            found = json.loads((self.path / f"{step}.call").read_bytes())
            return str(found["key"]), bool(found["done"])
        except (OSError, ValueError, KeyError):
            return None

    def bootstrap(self) -> tuple[str, int] | None:
        """Address (a Unix socket's path) and Task API version of the shim that was started, None when none
        was."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads((self.path / "bootstrap.json").read_bytes())
            return str(found["address"]).removeprefix("unix://"), int(found["version"])
        with contextlib.suppress(OSError):
            return (self.path / "address").read_text().strip().removeprefix("unix://"), 2
        return None

    def foreign_shim(self) -> str:
        """The path of the shim's program when it is not ours, else empty."""
        try:
            return (self.path / _FOREIGN).read_text()
        except OSError:
            return ""

    def write_bootstrap(self, address: str, version: int) -> None:
        """Note how to reach the shim, as our own does by itself."""
        document = {"version": version, "address": address, "protocol": "ttrpc"}
        _write(self.path / "bootstrap.json", json.dumps(document).encode())

    def pid(self, name: str) -> int:
        """The process id in `shim.pid` or `init.pid`, 0 when there is none."""
        try:
            return int((self.path / name).read_text())
        except (OSError, ValueError):
            return 0

    def write_pid(self, name: str, pid: int) -> None:
        """Note a process id, for whoever cleans up."""
        _write(self.path / name, str(pid).encode())

    def spec(self) -> dict[str, Any]:
        """config.json; empty when it cannot be read."""
        try:
            found: dict[str, Any] = json.loads((self.path / "config.json").read_bytes())
            return found
        except (OSError, ValueError):
            return {}

    def exit_record(self) -> dict[str, Any] | None:
        """The exit record of the process in init.pid (docs/contracts.md), or None when it left none."""
        annotations = self.spec().get("annotations") or {}
        folder = Path(annotations.get("dev.buoy.container-dir") or self.path)
        for name in ("exit.json", "exit.json.new"):
            with contextlib.suppress(OSError, ValueError):
                found = json.loads((folder / name).read_bytes())
                if found.get("pid") and found["pid"] == self.pid("init.pid"):
                    return dict(found)
        return None

    def sandbox_exists(self) -> bool:
        """Whether the network namespace that the spec joins by path, if any, is still there."""
        namespaces = (self.spec().get("linux") or {}).get("namespaces") or []
        return all(
            os.path.exists(entry["path"])
            for entry in namespaces
            if entry.get("type") == "network" and entry.get("path")
        )

    def remove(self) -> None:
        """Unmount the root file system, if it is still mounted, and take the folder away. Missing is fine.

        It only gets another name here, since unlinking may be slow: `empty_trash` does the rest.
        """
        rootfs = self.path / "rootfs"
        with contextlib.suppress(OSError):
            while True:  # mounts may lie on one another
                umount2(str(rootfs), _MNT_DETACH | _UMOUNT_NOFOLLOW)
        try:
            if rootfs.lstat().st_dev != self.path.lstat().st_dev:
                raise errdefs.FailedPrecondition(f"{rootfs} is still mounted")
        except FileNotFoundError:
            pass
        trash = self.path.parents[1] / _TRASH
        trash.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, trash / secrets.token_hex(16))


def empty_trash(state: Path) -> None:
    """Remove what bundles have left. Blocks; for a thread."""
    with contextlib.suppress(FileNotFoundError):
        for folder in (state / _TRASH).iterdir():
            shutil.rmtree(folder, ignore_errors=True)


def scan(state: Path) -> Iterator[Bundle]:
    """Every bundle below the state folder."""
    with contextlib.suppress(FileNotFoundError):
        for namespace in sorted(state.iterdir()):
            if namespace.is_dir() and not namespace.name.startswith("."):
                for folder in sorted(namespace.iterdir()):
                    if folder.is_dir():
                        yield Bundle(state, namespace.name, folder.name)


def _write(path: Path, data: bytes) -> None:
    """Replace a file in one step."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(new, path)


def _document(record: TaskRecord) -> dict[str, Any]:
    request = record.request
    options = request.options
    return {
        "key": record.key,
        "call_key": record.call_key,
        "runtime": record.runtime,
        "shim": record.shim,
        "id": request.id,
        "bundle": request.bundle,
        "rootfs": [
            {"type": mount.type, "source": mount.source, "target": mount.target, "options": mount.options}
            for mount in request.rootfs
        ],
        "terminal": request.terminal,
        "stdin": request.stdin,
        "stdout": request.stdout,
        "stderr": request.stderr,
        "options": options
        and {"type_url": options.type_url, "value": base64.b64encode(options.value).decode()},
    }


def _record(document: dict[str, Any]) -> TaskRecord:
    options = document["options"]
    return TaskRecord(
        request=CreateTaskRequest(
            id=document["id"],
            bundle=document["bundle"],
            rootfs=[Mount(**mount) for mount in document["rootfs"]],
            terminal=document["terminal"],
            stdin=document["stdin"],
            stdout=document["stdout"],
            stderr=document["stderr"],
            options=options
            and AnyMessage(type_url=options["type_url"], value=base64.b64decode(options["value"])),
        ),
        runtime=document["runtime"],
        call_key=document["call_key"],
        shim=document.get("shim", ""),
        key=document["key"],
    )
