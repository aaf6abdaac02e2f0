"""Every registered crash point is hit, by an engine that is asked for the same things until they are done.

The register is what the code names (`crash_register`). A point that no operation comes by fails the test, so
that a new point brings its operation along; the points of the runtime, of which the engine comes by some
only, are `test_runtime_points`'s. At the end the engine does everything without a crash, and nothing of the
crashed attempts is left.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import errdefs
import pytest
from launcher.busybox_image import busybox_image_tar, busybox_rootfs_tar
from pb.containerd.services.diff.v1 import DiffRequest, DiffStub
from pb.containerd.services.images.v1 import DeleteImageRequest, ImagesStub
from pb.containerd.types import Mount
from pb.containerd.types.transfer import ImageReference, ImageStore, OciRegistry, UnpackConfiguration
from rpc.grpc import Channel

from tests.support.crash_register import registered
from tests.support.engine import DOCKER, Engine
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registry import LocalRegistry, layer_of
from tests.support.remains import remains
from tests.support.transfer import import_image, transfer

pytestmark = [pytest.mark.root, pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(900)]

TRIES = 40
# Not every host's kernel and CRIU go together: these are come by in the machine of tests/systemd.
NEEDS_CRIU = ("checkpoint.", "restore.")


def succeeds(move: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Whether calls to containerd come through."""
    try:
        asyncio.run(move())
    except errdefs.BuoyError:
        return False
    return True


class Crashing:
    """An engine whose processes die at each point once, and what is asked of it."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.markers = folder / "points"

    def hit(self) -> set[str]:
        return {entry.name for entry in self.markers.iterdir()}

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The client, with a deadline of its own: a reply that was lost must not stop the test."""
        try:
            return self.engine.docker(*arguments, timeout=30)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(arguments, 124, "", "no reply within 30 s")

    def done(self, what: str, attempt: Callable[[], bool]) -> None:
        """Try until it works, each time with an engine that answers again."""
        for _ in range(TRIES):
            if attempt():
                return
            deadline = time.monotonic() + 30
            while self.docker("version").returncode and time.monotonic() < deadline:
                time.sleep(0.1)
        raise AssertionError(f"{what}: not done after {TRIES} tries{self.engine.logs()}")

    def absent(self, text: str, *arguments: str) -> bool:
        """The removal has worked, or there was nothing to remove, which the client says with `text`."""
        removal = self.docker(*arguments)
        return removal.returncode == 0 or text in removal.stderr

    def gone(self, *names: str) -> None:
        """Containers of these names do not exist."""
        for name in names:
            self.done(f"rm {name}", partial(self.absent, "No such container", "rm", "-f", name))

    def image(self) -> None:
        archive = str(self.folder / "busybox.tar")
        self.done("import", lambda: self.docker("import", archive, "busybox").returncode == 0)
        self.done("import other", lambda: self.docker("import", "-m", "x", archive, "other").returncode == 0)
        saved = str(self.folder / "image.tar")
        self.done("load", lambda: self.docker("load", "-i", saved).returncode == 0)
        self.done("tag", lambda: self.docker("tag", "loaded", "spare").returncode == 0)
        self.done("rmi other", partial(self.absent, "No such image", "rmi", "-f", "other"))
        # By its id both names go, one after the other.
        id = self.docker("inspect", "-f", "{{.Id}}", "spare").stdout.strip()
        self.done("rmi both", partial(self.absent, "No such image", "rmi", "-f", id))
        self.done("import", lambda: self.docker("import", str(self.folder / "busybox.tar")).returncode == 0)
        self.done("image prune", self.pruned)

    def pruned(self) -> bool:
        """Whether no image without a name is left."""
        if self.docker("image", "prune", "-f").returncode:
            return False
        return self.docker("images", "-q", "-f", "dangling=true").stdout == ""

    def foreground(self) -> None:
        def attempt() -> bool:
            self.gone("front")
            out = self.docker("run", "--rm", "--name", "front", "busybox", "sh", "-c", "echo said; exit 3")
            return (out.returncode, out.stdout) == (3, "said\n")

        self.done("run --rm", attempt)
        self.gone("front")

    def background(self) -> None:
        def attempt() -> bool:
            self.gone("back")
            command = ("sh", "-c", "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done")
            if self.docker("run", "-d", "-p", "80", "--name", "back", "busybox", *command).returncode:
                return False
            follow = [DOCKER, "-H", self.engine.host, "logs", "-f", "back"]
            with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as follower:
                try:
                    return self.used() and follower.communicate(timeout=20)[0] == "up\n"
                except subprocess.TimeoutExpired:
                    return False
                finally:
                    follower.kill()

        self.done("run -d", attempt)
        self.gone("back")

    def used(self) -> bool:
        """A running container is looked into, paused and stopped."""
        return (
            self.docker("exec", "back", "echo", "in").stdout == "in\n"
            and self.docker("pause", "back").returncode == 0
            and self.docker("unpause", "back").returncode == 0
            and self.docker("stop", "-t", "5", "back").returncode == 0
        )

    def logged(self) -> None:
        """A log that is rotated, and compressed when its writer has time."""
        containers = self.engine.state / "lib/docker/containers"

        def attempt() -> bool:
            self.gone("logs")
            options = ("--log-opt", "max-size=1k", "--log-opt", "max-file=2", "--log-opt", "compress=true")
            out = self.docker("run", *options, "--name", "logs", "busybox", "seq", "100")
            deadline = time.monotonic() + 5
            while not list(containers.glob("*/*.gz")) and time.monotonic() < deadline:
                time.sleep(0.02)
            return out.stdout.split() == [str(number) for number in range(1, 101)]

        self.done("rotated log", attempt)
        self.gone("logs")

    def committed(self) -> None:
        """An image of what a container wrote."""

        def attempt() -> bool:
            self.gone("seed")
            if self.docker("run", "--name", "seed", "busybox", "touch", "/f").returncode:
                return False
            return self.docker("commit", "seed", "seeded").returncode == 0

        self.done("commit", attempt)
        self.gone("seed")
        self.done("rmi seeded", partial(self.absent, "No such image", "rmi", "-f", "seeded"))

    def layer(self) -> None:
        """A layer made of a tree, which containerd's clients ask for."""

        async def make() -> None:
            tree = Mount(type="bind", source=str(self.folder / "tree"), options=["ro", "rbind"])
            channel = Channel(str(self.engine.state / "run/containerd.sock"), namespace="moby")
            try:
                await DiffStub(channel).diff(DiffRequest(right=[tree], ref="layer"))
            finally:
                channel.close()

        def attempt() -> bool:
            try:
                asyncio.run(make())
            except errdefs.BuoyError:
                return False
            return True

        (self.folder / "tree").mkdir(exist_ok=True)
        self.done("layer", attempt)

    def transferred(self) -> None:
        """An archive that a client of containerd imports by the daemon."""

        async def move() -> None:
            channel = Channel(str(self.engine.state / "run/containerd.sock"), namespace="moved")
            try:
                store = ImageStore(
                    extra_references=[ImageReference(name="moved", is_prefix=True, allow_overwrite=True)],
                    unpacks=[UnpackConfiguration()],
                )
                await import_image(channel, (self.folder / "image.tar").read_bytes(), store)
                name = "docker.io/library/loaded:latest"
                await ImagesStub(channel).delete(DeleteImageRequest(name=name, sync=True))
            finally:
                channel.close()

        self.done("transfer", partial(succeeds, move))

    def pulled(self) -> None:
        """An image of a registry whose line breaks, pulled by a client of containerd, then by Docker's."""
        data = os.urandom(3_000_000)
        with (
            LocalRegistry(self.folder / "registry") as registry,
            FaultProxy(registry.address) as proxy,
        ):
            registry.put_image("some/image", "latest", [layer_of({"a": data}), layer_of({"b/c": b"2"})])
            proxy.add(Fault(path="/blobs/", cut_at=0.5, times=3))
            name = f"{proxy.address}/some/image:latest"

            async def move() -> None:
                channel = Channel(str(self.engine.state / "run/containerd.sock"), namespace="pulled")
                try:
                    store = ImageStore(name=name, unpacks=[UnpackConfiguration()])
                    await transfer(channel, OciRegistry(reference=name), store)
                    await ImagesStub(channel).delete(DeleteImageRequest(name=name, sync=True))
                finally:
                    channel.close()

            self.done("pull", partial(succeeds, move))
            self.done("docker pull", lambda: self.docker("pull", name).returncode == 0)
            self.done("rmi pulled", partial(self.absent, "No such image", "rmi", "-f", name))

    def kept(self) -> None:
        def attempt() -> bool:
            self.gone("kept")
            options = ("--restart", "always", "--ipc", "shareable", "--name", "kept")
            if self.docker("run", "-d", *options, "busybox", "sleep", "100").returncode:
                return False
            return self.docker("stop", "-t", "0", "kept").returncode == 0

        self.done("stop for good", attempt)
        self.gone("kept")

    def restarted(self) -> None:
        def attempt() -> bool:
            self.gone("again")
            options = ("--restart", "on-failure:2", "--name", "again")
            if self.docker("run", "-d", *options, "busybox", "sh", "-c", "echo run; exit 5").returncode:
                return False
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                state = self.docker("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "again").stdout
                if state == "exited 2\n":
                    return True
                time.sleep(0.1)
            return False

        self.done("restart policy", attempt)
        self.gone("again")

    def everything(self) -> None:
        self.image()
        self.foreground()
        self.background()
        self.logged()
        self.committed()
        self.layer()
        self.transferred()
        self.pulled()
        self.kept()
        self.restarted()


@pytest.fixture
def crashing(tmp_path: Path) -> Iterator[Crashing]:
    markers = tmp_path / "points"
    markers.mkdir()
    busybox_rootfs_tar(tmp_path / "busybox.tar")
    busybox_image_tar(tmp_path / "image.tar", "loaded:latest")
    engine = Engine({"BUOY_CRASH_AT": "*", "BUOY_CRASH_ONCE": str(markers)})
    try:
        engine.up()
        yield Crashing(engine, tmp_path)
    finally:
        engine.purge()


def test_every_point(crashing: Crashing) -> None:
    before: set[str] | None = None
    while before != crashing.hit():
        before = crashing.hit()
        crashing.everything()
    missed = registered() - registered("runc.", "cgroups.", *NEEDS_CRIU) - crashing.hit()
    assert not missed, f"no operation comes by {sorted(missed)}"
    engine = crashing.engine
    assert engine.out("ps", "-aq") == ""
    # Behind the replies parts of the last container may still be given back.
    engine.until("nothing left", lambda: not remains(engine.state), explain=lambda: remains(engine.state))
