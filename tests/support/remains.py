"""What an engine without containers still holds of containers it had: by rights, nothing."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

from launcher.layout import Layout
from linux.mounts import mount_table
from pb.containerd.services.containers.v1 import ContainersStub, ListContainersRequest
from pb.containerd.services.content.v1 import ContentStub, ListStatusesRequest
from pb.containerd.services.leases.v1 import LeasesStub
from pb.containerd.services.leases.v1 import ListRequest as ListLeases
from pb.containerd.services.snapshots.v1 import Kind, ListSnapshotsRequest, SnapshotsStub
from pb.containerd.services.tasks.v1 import ListTasksRequest, TasksStub
from rpc.grpc import Channel

# Network namespaces that are kept ready: four with an interface, one without.
READY = 5

# The tables of engine.db with rows for containers.
_ROWS = ("containers", "execs", "network_sandboxes", "network_endpoints", "network_ports")


def remains(state: Path) -> list[str]:
    """Everything of containers that the running engine in `state`, which has none, still holds.

    Images are not of containers; the network namespaces that are kept ready and the engine's own mounts and
    sockets neither.
    """
    layout = Layout(state)
    return [
        *_files(state),
        *_namespaces(layout),
        *_mounts(layout),
        *_cgroups(layout),
        *_ports(layout),
        *_processes(state),
        *_rows(state / "lib/docker/engine.db"),
        *asyncio.run(_in_containerd(state)),
    ]


def _files(state: Path) -> Iterator[str]:
    for pattern in (
        "run/s/*",
        "run/containerd/*/*",
        "run/containerd/.trash/*",
        "run/runc/*/[!@]*",
        "lib/docker/containers/*",
        "lib/docker/tmp/*",
        "lib/containerd/content/ingest*/*",
        # Folders on their way in or out, and those that were put aside as nobody's.
        "lib/containerd/snapshots/[!0-9]*",
        "lib/containerd/*.unknown-*",
        "lib/containerd/content/*.unknown-*",
    ):
        yield from (f"file {path}" for path in state.glob(pattern))


def _namespaces(layout: Layout) -> Iterator[str]:
    pinned = os.listdir(layout.exec_root / "netns")
    if len(pinned) > READY:
        yield f"{len(pinned)} network namespaces, of which {READY} may be ready ones"
    ports = Path(f"/sys/class/net/buoy{layout.instance}/brif")
    if ports.exists() and len(links := os.listdir(ports)) > READY:
        yield f"links {' '.join(links)}"


def _mounts(layout: Layout) -> Iterator[str]:
    inside, own = f"{layout.state}/", (f"{layout.run}/python-", f"{layout.exec_root}/netns/")
    for mount in mount_table():
        if mount.target.startswith(inside) and not mount.target.startswith(own):
            yield f"mount {mount.target}"


def _cgroups(layout: Layout) -> Iterator[str]:
    for folder in Path("/sys/fs/cgroup").glob(f"*/buoy-{layout.instance}/*"):
        if folder.is_dir():
            yield f"cgroup {folder}"


def _ports(layout: Layout) -> Iterator[str]:
    command = ["nft", "list", "table", "inet", f"buoy_{layout.instance}"]
    listing = subprocess.run(command, capture_output=True, text=True).stdout
    if "elements" in listing:
        yield f"published ports: {listing}"


def _processes(state: Path) -> Iterator[str]:
    """Shims: their working folder is the bundle, also when it is gone."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                folder = os.readlink(entry / "cwd")
            except OSError:
                continue
            if folder.startswith(f"{state}/run/containerd/"):
                yield f"process {entry.name} in {folder}"


def _rows(path: Path) -> Iterator[str]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        for table in _ROWS:
            for row in connection.execute(f"SELECT * FROM {table}"):
                yield f"row of {table}: {row}"
    finally:
        connection.close()


async def _in_containerd(state: Path) -> list[str]:
    found = []
    channel = Channel(f"{state}/run/containerd.sock", namespace="moby")
    try:
        async for reply in SnapshotsStub(channel).list(ListSnapshotsRequest(snapshotter="overlayfs")):
            found += [f"snapshot {one.name}" for one in reply.info if one.kind != Kind.COMMITTED]
        statuses = await ContentStub(channel).list_statuses(ListStatusesRequest())
        found += [f"ingest {one.ref}" for one in statuses.statuses]
        leases = await LeasesStub(channel).list(ListLeases())
        found += [f"lease {one.id}" for one in leases.leases]
        containers = await ContainersStub(channel).list(ListContainersRequest())
        found += [f"containerd's container {one.id}" for one in containers.containers]
        tasks = await TasksStub(channel).list(ListTasksRequest())
        found += [f"task {one.id}" for one in tasks.tasks]
    finally:
        channel.close()
    return found
