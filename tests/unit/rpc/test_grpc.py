"""rpc.grpc: our client against our server over a real Unix socket."""
# ruff: noqa: ASYNC110 - tests poll with a deadline

from __future__ import annotations

import asyncio
import math
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import errdefs
import grpclib.client
import pytest
from pb.containerd.services.events.v1 import (
    EventsBase,
    EventsStub,
    PublishRequest,
    SubscribeRequest,
)
from pb.containerd.services.namespaces.v1 import ListNamespacesRequest, NamespacesStub
from pb.containerd.services.version.v1 import VersionBase, VersionResponse, VersionStub
from pb.containerd.types import Envelope
from pb.google.protobuf import Empty
from rpc.grpc import Channel, Server, current_call


class Version(VersionBase):
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.delay = 0.0
        self.cancelled = False

    async def version(self, message: Empty) -> VersionResponse:
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return VersionResponse(version=current_call().namespace, revision="r")


class Events(EventsBase):
    async def publish(self, message: PublishRequest) -> Empty:
        return Empty()

    async def subscribe(self, message: SubscribeRequest) -> AsyncIterator[Envelope]:
        await current_call().send_initial_metadata({"buoy-events-resumed": "1"})
        for number in range(3):
            yield Envelope(topic=f"/{number}")
        raise errdefs.OutOfRange("no more")


@asynccontextmanager
async def served(path: Path, *services: object) -> AsyncIterator[Server]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen()
    server = Server(services)  # type: ignore[arg-type]
    await server.serve(sock)
    try:
        yield server
    finally:
        await server.close()


async def test_a_call_carries_the_namespace(tmp_path: Path) -> None:
    async with served(tmp_path / "s", Version()), Channel(str(tmp_path / "s"), namespace="moby") as channel:
        assert (await VersionStub(channel).version(Empty())).version == "moby"
        other = await VersionStub(channel).version(Empty(), metadata={"containerd-namespace": "k8s.io"})
        assert other.version == "k8s.io"


async def test_a_missing_namespace_is_said(tmp_path: Path) -> None:
    async with served(tmp_path / "s", Version()), Channel(str(tmp_path / "s")) as channel:
        with pytest.raises(errdefs.FailedPrecondition, match="namespace is required"):
            await VersionStub(channel).version(Empty())


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errdefs).values() if isinstance(kind, type) and kind.__module__ == "errdefs"],
)
async def test_every_kind_arrives_as_itself_with_its_detail(
    tmp_path: Path, kind: type[errdefs.BuoyError]
) -> None:
    if kind is errdefs.BuoyError:
        kind = errdefs.Internal
    version = Version()
    version.error = kind('container "é" in namespace "moby": not found', detail={"id": "é", "n": "1"})
    async with served(tmp_path / "s", version), Channel(str(tmp_path / "s"), namespace="moby") as channel:
        with pytest.raises(kind) as caught:
            await VersionStub(channel).version(Empty())
    assert type(caught.value) is kind
    assert caught.value.message == 'container "é" in namespace "moby": not found'
    assert caught.value.detail == {"id": "é", "n": "1"}


async def test_an_unexpected_exception_is_internal_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = Version()
    version.error = RuntimeError("a bug")
    async with served(tmp_path / "s", version), Channel(str(tmp_path / "s"), namespace="moby") as channel:
        with pytest.raises(errdefs.Internal, match="a bug"):
            await VersionStub(channel).version(Empty())
    assert len([r for r in caplog.records if r.exc_info]) == 1


async def test_unknown_services_and_methods_are_unimplemented(tmp_path: Path) -> None:
    async with served(tmp_path / "s", Version()), Channel(str(tmp_path / "s"), namespace="moby") as channel:
        with pytest.raises(errdefs.NotImplementedHere, match="unknown service containerd"):
            await NamespacesStub(channel).list(ListNamespacesRequest())


async def test_a_deadline_ends_the_call_on_both_sides(tmp_path: Path) -> None:
    version = Version()
    version.delay = 30
    async with served(tmp_path / "s", version), Channel(str(tmp_path / "s"), timeout=0.05) as channel:
        with pytest.raises(errdefs.DeadlineExceeded):
            await VersionStub(channel).version(Empty())
        async with asyncio.timeout(5):
            while not version.cancelled:
                await asyncio.sleep(0.01)


async def test_an_infinite_timeout_outlasts_the_default_one(tmp_path: Path) -> None:
    version = Version()
    version.delay = 0.2
    channel = Channel(str(tmp_path / "s"), timeout=0.05, namespace="a")
    async with served(tmp_path / "s", version), channel:
        await VersionStub(channel).version(Empty(), timeout=math.inf)


async def test_no_server_is_unavailable_and_a_new_one_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with Channel(str(path), namespace="a") as channel:
        with pytest.raises(errdefs.Unavailable):
            await VersionStub(channel).version(Empty())
        async with served(path, Version()):
            await VersionStub(channel).version(Empty())
        path.unlink()
        with pytest.raises(errdefs.Unavailable):
            await VersionStub(channel).version(Empty())
        async with served(path, Version()):
            await VersionStub(channel).version(Empty())


async def test_closing_the_server_ends_calls_under_way_and_keeps_the_path(tmp_path: Path) -> None:
    version = Version()
    version.delay = 30
    async with Channel(str(tmp_path / "s"), namespace="a") as channel:
        async with served(tmp_path / "s", version) as server:
            call = asyncio.create_task(VersionStub(channel).version(Empty()))
            async with asyncio.timeout(5):
                while not server._open:
                    await asyncio.sleep(0.01)
        with pytest.raises(errdefs.Unavailable):
            await call
    assert (tmp_path / "s").exists()


async def test_a_stream_sends_its_headers_then_messages_then_its_error(tmp_path: Path) -> None:
    async with served(tmp_path / "s", Events()), Channel(str(tmp_path / "s")) as channel:
        topics = []
        with pytest.raises(errdefs.OutOfRange, match="no more"):  # noqa: PT012
            async for envelope in EventsStub(channel).subscribe(SubscribeRequest()):
                topics.append(envelope.topic)
        assert topics == ["/0", "/1", "/2"]


async def test_a_malformed_message_is_the_callers_fault(tmp_path: Path) -> None:
    async with served(tmp_path / "s", Events()), Channel(str(tmp_path / "s")) as channel:
        with pytest.raises(errdefs.InvalidArgument, match="malformed PublishRequest"):
            await channel_call(channel, "/containerd.services.events.v1.Events/Publish", b"\x0a\x02\xff\xfe")


async def channel_call(channel: grpclib.client.Channel, method: str, data: bytes) -> None:
    from grpclib.const import Cardinality

    class Raw(Empty):
        def __bytes__(self) -> bytes:
            return data

    async with channel.request(method, Cardinality.UNARY_UNARY, Raw, Empty) as stream:
        await stream.send_message(Raw(), end=True)
        await stream.recv_message()


@pytest.mark.root
async def test_a_client_of_another_uid_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    os.chmod(tmp_path, 0o755)
    for parent in list(tmp_path.parents)[:2]:
        os.chmod(parent, 0o755)
    async with served(tmp_path / "s", Version()):
        os.chmod(tmp_path / "s", 0o777)
        script = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            "s.connect(sys.argv[1])\n"
            "try:\n"
            "    s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n')\n"
            "    print(len(s.recv(100)))\n"
            "except ConnectionError:\n"
            "    print(0)\n"
        )
        run = await asyncio.create_subprocess_exec(
            "/usr/bin/python3", "-c", script, str(tmp_path / "s"), user=65534, stdout=subprocess.PIPE
        )
        out, _ = await run.communicate()
        assert out.strip() == b"0"
