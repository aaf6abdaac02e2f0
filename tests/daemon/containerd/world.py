"""A real nursery and a real containerd-svc in folders of their own, and clients for them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import errdefs
from pb.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
    UpdateContainerRequest,
)
from pb.containerd.services.events.v1 import SubscribeRequest
from pb.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetRequest,
    KillRequest,
    ListTasksRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from pb.containerd.types import Envelope, Mount
from pb.containerd.v1.types import Process, Status
from pb.google.protobuf import Any as AnyMessage
from pb.google.protobuf import FieldMask
from rpc.grpc import Channel

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
BIN = Path(sys.executable).parent


async def until(done: Callable[[], Any], what: str, timeout: float = 15.0) -> Any:
    """Poll `done` until it is true; its value. Awaits it when it is a coroutine."""
    deadline = time.monotonic() + timeout
    while True:
        value = done()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.01)


class World:
    """The two services, their client, and what to do with containers in one line."""

    def __init__(self, rootfs: Path) -> None:
        self.rootfs = rootfs
        self.dir = Path(tempfile.mkdtemp(prefix="ctd-", dir="/tmp"))
        self.cgroup = f"/buoy-{self.dir.name}"
        self.address = str(self.dir / "c.sock")
        self.state = self.dir / "state"
        self.sockets = self.dir / "s"
        self.log = self.dir / "log"
        self.options: dict[str, str] = {}
        """Further options of the daemon."""
        self.environment: dict[str, str] = {}
        """What the daemon's environment has otherwise than the test's."""
        self.nursery: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None
        self.channel = Channel(self.address, namespace="moby", timeout=30)

    @property
    def tasks(self) -> TasksStub:
        return TasksStub(self.channel)

    @property
    def containers(self) -> ContainersStub:
        return ContainersStub(self.channel)

    # The services.

    def start_nursery(self) -> None:
        command = [str(BIN / "shim-svc"), "nursery", "--address", str(self.dir / "shim.sock")]
        command += ["--sockets", str(self.sockets), "--runtime-root", str(self.dir / "runc")]
        with self.log.open("ab") as log:
            self.nursery = subprocess.Popen(command, stdout=log, stderr=log)

    def command(self, **changes: str) -> list[str]:
        options = {
            "root": str(self.dir / "lib"),
            "state": str(self.state),
            "address": self.address,
            "sockets": str(self.sockets),
            "runtime-root": str(self.dir / "runc"),
            "nursery": str(self.dir / "shim.sock"),
            "log-level": "info",
            **self.options,
            **changes,
        }
        return [str(BIN / "containerd-svc"), *(f"--{name}={value}" for name, value in options.items())]

    def start_daemon(self, environment: Mapping[str, str] | None = None) -> None:
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment, **(environment or {})},
            )

    async def up(self) -> None:
        self.start_nursery()
        await until((self.dir / "shim.sock").exists, "the nursery listens")
        self.start_daemon()
        await self.answers()

    async def answers(self) -> None:
        """Wait until the daemon answers."""

        async def list_tasks() -> bool:
            try:
                await self.tasks.list(ListTasksRequest(), timeout=5)
            except errdefs.Unavailable:
                assert self.daemon is None or self.daemon.poll() is None, self.log.read_text()
                return False
            return True

        await until(list_tasks, "containerd-svc answers")

    def kill_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None

    async def restart_daemon(self, environment: Mapping[str, str] | None = None) -> None:
        """kill -9, then a new one that answers."""
        if self.daemon is not None:
            self.kill_daemon()
        self.start_daemon(environment)
        await self.answers()

    async def down(self) -> None:
        """End everything, containers first, whatever state it is in."""
        self.channel.close()
        for process in (self.daemon, self.nursery):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        for pid in self.shim_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for bundle in sorted(self.state.glob("*/*/config.json")):
            folder = bundle.parent
            root = self.dir / "runc" / folder.parent.name
            _quietly(BIN / "runc-bin", "--root", root, "delete", "--force", folder.name)
        for folder in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}"):
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        mounted = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for place in reversed(mounted):
            if place.startswith(f"{self.dir}/"):
                _quietly("umount", "-l", place)
        (self.rootfs / self.dir.name).unlink(missing_ok=True)
        shutil.rmtree(self.dir)

    def shim_pids(self) -> list[int]:
        found = []
        for path in self.state.glob("*/*/shim.pid"):
            with contextlib.suppress(ValueError, OSError):
                found.append(int(path.read_text()))
        return found

    # Containers.

    def spec(self, args: Sequence[str], container_id: str, **annotations: str) -> AnyMessage:
        folder = self.dir / "containers" / container_id
        folder.mkdir(parents=True, exist_ok=True)
        document = {
            "ociVersion": "1.1.0",
            "process": {
                "terminal": False,
                "user": {"uid": 0, "gid": 0},
                "args": list(args),
                "env": ["PATH=/bin"],
                "cwd": "/",
                "capabilities": {"bounding": [], "effective": [], "permitted": []},
            },
            "root": {"path": "rootfs"},
            "hostname": "test",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            ],
            "annotations": {"dev.buoy.container-dir": str(folder), **annotations},
            "linux": {
                "cgroupsPath": f"{self.cgroup}/{container_id}",
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            },
        }
        return AnyMessage(type_url=SPEC_TYPE, value=json.dumps(document).encode())

    async def container(
        self,
        *args: str,
        labels: Mapping[str, str] | None = None,
        container_id: str = "",
    ) -> str:
        """A container that runs busybox's `args`; its id."""
        container_id = container_id or secrets.token_hex(32)
        await self.containers.create(
            CreateContainerRequest(
                container=Container(
                    id=container_id,
                    labels=dict(labels or {}),
                    runtime=ContainerRuntime(name="io.containerd.runc.v2"),
                    spec=self.spec(args, container_id),
                )
            )
        )
        return container_id

    def gated(self, command: str) -> list[str]:
        """Arguments that wait for `open_gate`, then run the shell's `command`."""
        return ["sh", "-c", f"until [ -e /{self.dir.name} ]; do sleep 0.02; done; {command}"]

    def open_gate(self) -> None:
        (self.rootfs / self.dir.name).touch()

    def task_request(self, container_id: str, stdout: str = "") -> CreateTaskRequest:
        rootfs = Mount(type="bind", source=str(self.rootfs), options=["rbind", "rw"])
        return CreateTaskRequest(container_id=container_id, rootfs=[rootfs], stdout=stdout, stderr=stdout)

    async def run(self, *args: str, labels: Mapping[str, str] | None = None, stdout: str = "") -> str:
        """Container, task, start; the id."""
        container_id = await self.container(*args, labels=labels)
        await self.tasks.create(self.task_request(container_id, stdout))
        await self.tasks.start(StartRequest(container_id=container_id))
        return container_id

    async def get(self, container_id: str, exec_id: str = "") -> Process:
        reply = await self.tasks.get(GetRequest(container_id=container_id, exec_id=exec_id))
        assert reply.process is not None
        return reply.process

    async def status(self, container_id: str) -> Status:
        return (await self.get(container_id)).status

    async def wait(self, container_id: str, exec_id: str = "") -> int:
        return (
            await self.tasks.wait(WaitRequest(container_id=container_id, exec_id=exec_id), timeout=30)
        ).exit_status

    async def kill(self, container_id: str, number: int = 9) -> None:
        await self.tasks.kill(KillRequest(container_id=container_id, signal=number))

    async def delete(self, container_id: str) -> int:
        return (await self.tasks.delete(DeleteTaskRequest(container_id=container_id))).exit_status

    async def remove(self, container_id: str) -> None:
        """Kill, delete and forget."""
        with contextlib.suppress(errdefs.BuoyError):
            await self.stop_label(container_id)
        with contextlib.suppress(errdefs.BuoyError):
            await self.kill(container_id)
            await self.wait(container_id)
        with contextlib.suppress(errdefs.NotFound):
            await self.delete(container_id)
        await self.containers.delete(DeleteContainerRequest(id=container_id))

    async def stop_label(self, container_id: str) -> None:
        key = "containerd.io/restart.explicitly-stopped"
        await self.containers.update(
            UpdateContainerRequest(
                container=Container(id=container_id, labels={key: "true"}),
                update_mask=FieldMask(paths=[f"labels.{key}"]),
            )
        )


class Follower:
    """A subscriber that remembers all that it was told."""

    def __init__(self, world: World, *filters: str, after: int | None = None) -> None:
        self._channel = Channel(world.address)
        self._filters = list(filters)
        self._after = after
        self.seen: list[Envelope] = []
        self.resumed = False
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Follower:
        self._task = asyncio.create_task(self._follow())
        async with asyncio.timeout(10):
            await self._ready.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, errdefs.Unavailable):
            await self._task
        self._channel.close()

    async def _follow(self) -> None:
        from grpclib.const import Cardinality

        metadata = {} if self._after is None else {"buoy-events-after": str(self._after)}
        async with self._channel.request(
            "/containerd.services.events.v1.Events/Subscribe",
            Cardinality.UNARY_STREAM,
            SubscribeRequest,
            Envelope,
            metadata=metadata,
        ) as stream:
            await stream.send_message(SubscribeRequest(filters=self._filters), end=True)
            await stream.recv_initial_metadata()
            self.resumed = stream.initial_metadata.get("buoy-events-resumed") == "1"
            self._ready.set()
            async for envelope in stream:
                self.seen.append(envelope)

    def topics(self) -> list[str]:
        return [envelope.topic for envelope in self.seen]

    def of(self, topic: str) -> list[Envelope]:
        return [envelope for envelope in self.seen if envelope.topic == topic]

    @property
    def cursor(self) -> int:
        at = self.seen[-1].timestamp
        assert at is not None
        return micros(at)


def micros(at: datetime.datetime) -> int:
    delta = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (delta.days * 86_400 + delta.seconds) * 10**6 + delta.microseconds


def _quietly(*command: str | Path) -> None:
    subprocess.run(command, capture_output=True, check=False)


@contextlib.asynccontextmanager
async def running(
    rootfs: Path, environment: Mapping[str, str] | None = None, **options: str
) -> AsyncIterator[World]:
    """A world that is up, its daemon with these options and variables, and gone afterwards."""
    world = World(rootfs)
    world.options.update(options)
    world.environment.update(environment or {})
    try:
        await world.up()
        yield world
    finally:
        await world.down()
