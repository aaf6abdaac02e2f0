"""containerd-svc beside the real containerd, both asked over gRPC by the same client, alternating.

    python -m tests.bench.beside_containerd ROUNDS TOOLS WORK

is to be process 1 of new pid and mount namespaces; `tests.bench.containerd` sees to it. TOOLS is a list as in
PATH with containerd, its shim, ctr and runc; WORK a folder for everything. Prints a JSON line for each row:
name, unit, [ours, the peer's].
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import errdefs
from launcher.busybox_image import busybox_rootfs_tar
from pb.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from pb.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from pb.containerd.types import Mount
from pb.google.protobuf import Any as AnyMessage
from rpc.grpc import Channel
from runc_bin.libcontainer import spec_document

from tests.bench.memory import pss
from tests.daemon.containerd.world import SPEC_TYPE, running
from tests.suites.real_daemons import end, prepare, run, start_containerd

Made = TypeVar("Made")

NAMESPACE = "buoy-bench"
MANY = 200
_AT_A_TIME = 10
_SETTLED = 6.0  # seconds after which a shim of ours has let its log writer go


class Side:
    """One daemon, its containers on one root, without a network of their own."""

    def __init__(self, address: str, pid: int, shim: str, place: Path, rootfs: Path) -> None:
        self.channel = Channel(address, namespace=NAMESPACE, timeout=60)
        self.pid = pid
        self.shim = shim
        self._place = place
        self._rootfs = rootfs
        self._count = 0

    async def start(self, *args: str) -> str:
        """A container with its task started; its id."""
        self._count += 1
        name = f"b{self._count}"
        folder = self._place / name
        folder.mkdir(parents=True)
        containers, tasks = ContainersStub(self.channel), TasksStub(self.channel)
        container = Container(
            id=name,
            runtime=ContainerRuntime(name="io.containerd.runc.v2"),
            spec=AnyMessage(type_url=SPEC_TYPE, value=_spec(folder, args)),
        )
        await containers.create(CreateContainerRequest(container=container))
        rootfs = Mount(type="bind", source=str(self._rootfs), options=["rbind", "rw"])
        await tasks.create(CreateTaskRequest(container_id=name, rootfs=[rootfs]))
        await tasks.start(StartRequest(container_id=name))
        return name

    async def finish(self, name: str) -> None:
        """Wait for the container's end and remove it."""
        tasks = TasksStub(self.channel)
        await tasks.wait(WaitRequest(container_id=name), timeout=60)
        await tasks.delete(DeleteTaskRequest(container_id=name))
        await ContainersStub(self.channel).delete(DeleteContainerRequest(id=name))

    async def life(self) -> None:
        await self.finish(await self.start("true"))

    async def start_many(self) -> list[str]:
        """MANY sleeping containers, some at a time."""
        return await _some_at_a_time([partial(self.start, "sleep", "3600")] * MANY)

    async def end_many(self, names: list[str]) -> None:
        async def one(name: str) -> None:
            await TasksStub(self.channel).kill(KillRequest(container_id=name, signal=9))
            await self.finish(name)

        await _some_at_a_time([partial(one, name) for name in names])

    def shim_pss(self) -> float:
        """The median of the shims' memory in MB."""
        found = [pss(int(entry.name)) for entry in Path("/proc").iterdir() if self._is_shim(entry)]
        return statistics.median(found)

    def _is_shim(self, entry: Path) -> bool:
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            return False
        words = line.replace("\0", " ").split()
        return bool(words) and words[0].endswith(self.shim) and "-namespace" in words


def _spec(folder: Path, args: tuple[str, ...]) -> bytes:
    document = spec_document.default()
    document["process"].update(terminal=False, args=list(args))
    document["root"] = {"path": "rootfs"}
    document["linux"]["namespaces"] = [
        namespace for namespace in document["linux"]["namespaces"] if namespace["type"] != "network"
    ]
    document["linux"]["cgroupsPath"] = f"/{NAMESPACE}/{folder.parent.name}-{folder.name}"
    document["annotations"] = {"dev.buoy.container-dir": str(folder)}
    return json.dumps(document).encode()


async def _some_at_a_time(jobs: list[Callable[[], Awaitable[Made]]]) -> list[Made]:
    free = asyncio.Semaphore(_AT_A_TIME)

    async def one(job: Callable[[], Awaitable[Made]]) -> Made:
        async with free:
            return await job()

    return await asyncio.gather(*(one(job) for job in jobs))


async def _timed(job: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await job()
    return (time.perf_counter() - began) * 1000


async def _alternating(rounds: int, *jobs: Callable[[], Awaitable[object]]) -> list[float]:
    """The median of each in milliseconds; the first round warms all up."""
    times: list[list[float]] = [[] for _ in jobs]
    for turn in range(rounds + 1):
        for index, job in enumerate(jobs):
            took = await _timed(job)
            if turn:
                times[index].append(took)
    return [statistics.median(one) for one in times]


def _print(name: str, unit: str, values: list[float]) -> None:
    print(json.dumps([name, unit, values]), flush=True)


async def _measure(ours: Side, peer: Side, ctr: Callable[[], Awaitable[object]], rounds: int) -> None:
    await ours.life()
    await peer.life()
    _print("the daemon, idle", "MB PSS", [pss(ours.pid), pss(peer.pid)])
    _print("a life, both over gRPC", "ms", await _alternating(rounds, ours.life, peer.life))
    _print("a life, beside ctr run --rm --net-host", "ms", await _alternating(rounds, ours.life, ctr))
    started: list[float] = []
    memory: list[float] = []
    for side in (ours, peer):
        began = time.perf_counter()
        names = await side.start_many()
        started.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(_SETTLED)
        memory.append(side.shim_pss())
        await side.end_many(names)
    _print(f"{MANY} sleeping containers started, {_AT_A_TIME} at a time", "ms", started)
    _print(f"shim, {MANY} sleeping, no network", "MB PSS", memory)


async def _beside(rounds: int, tools: str, work: Path) -> None:
    rootfs, place = work / "rootfs", work / "daemon"
    for folder in (rootfs, place):
        folder.mkdir()
    busybox_rootfs_tar(work / "rootfs.tar")
    run("tar", "-C", str(rootfs), "-xf", str(work / "rootfs.tar"))
    address = start_containerd(tools, place, log=work / "daemon.log")
    ctr = [*_found("ctr", tools), "-a", address, "-n", NAMESPACE]

    async def ctr_run() -> None:
        done = await asyncio.create_subprocess_exec(
            *ctr, "run", "--rm", "--net-host", "--rootfs", str(rootfs), "c", "/bin/true"
        )
        if await done.wait():
            raise errdefs.Internal("ctr run failed")

    async with running(rootfs) as world:
        assert world.daemon is not None
        ours = Side(world.address, world.daemon.pid, "shim-svc", work / "ours", rootfs)
        pid = int((place / "pid").read_text())
        peer = Side(address, pid, "containerd-shim-runc-v2", work / "peer", rootfs)
        try:
            await _measure(ours, peer, ctr_run, rounds)
        finally:
            ours.channel.close()
            peer.channel.close()


def _found(name: str, tools: str) -> list[str]:
    found = shutil.which(name, path=tools)
    if found is None:
        raise SystemExit(f"no {name} in {tools}")
    return [found]


def main() -> None:
    rounds, tools, work = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    prepare(work)
    try:
        asyncio.run(_beside(rounds, tools, work))
    except (errdefs.BuoyError, OSError, AssertionError) as error:
        log = work / "daemon.log"
        raise SystemExit(f"{error}\n{log.read_text()[-1000:] if log.exists() else ''}") from None
    finally:
        end(NAMESPACE)


if __name__ == "__main__":
    main()
