"""The small services on the wire."""

from __future__ import annotations

import datetime

import errdefs
import pytest
from pb.containerd.events import TaskExit
from pb.containerd.services.events.v1 import EventsStub, ForwardRequest, PublishRequest, SubscribeRequest
from pb.containerd.services.introspection.v1 import (
    IntrospectionStub,
    PluginInfoRequest,
    PluginsRequest,
)
from pb.containerd.services.namespaces.v1 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    ListNamespacesRequest,
    Namespace,
    NamespacesStub,
)
from pb.containerd.services.version.v1 import VersionStub
from pb.containerd.types import Envelope
from pb.google.protobuf import Any as AnyMessage
from pb.google.protobuf import Empty
from pb.grpc.health.v1 import HealthCheckRequest, HealthCheckResponseServingStatus, HealthStub

from tests.daemon.containerd.world import Follower, World, until

pytestmark = pytest.mark.root


async def test_what_the_daemon_says_of_itself(world: World) -> None:
    assert (await VersionStub(world.channel).version(Empty())).version
    health = HealthStub(world.channel)
    serving = HealthCheckResponseServingStatus.SERVING
    assert (await health.check(HealthCheckRequest())).status == serving
    assert (
        await health.check(HealthCheckRequest(service="containerd.services.tasks.v1.Tasks"))
    ).status == serving
    with pytest.raises(errdefs.NotFound):
        await health.check(HealthCheckRequest(service="no.such.Service"))
    introspection = IntrospectionStub(world.channel)
    server = await introspection.server(Empty())
    assert world.daemon is not None
    assert server.pid == world.daemon.pid
    plugins = (
        await introspection.plugins(PluginsRequest(filters=["type==io.containerd.snapshotter.v1"]))
    ).plugins
    assert "overlayfs" in [plugin.id for plugin in plugins]
    with pytest.raises(errdefs.NotFound):
        await introspection.plugin_info(PluginInfoRequest(type="a", id="b"))
    await world.restart_daemon()
    assert (await introspection.server(Empty())).uuid == server.uuid


async def test_namespaces_on_the_wire(world: World) -> None:
    namespaces = NamespacesStub(world.channel)
    await namespaces.create(CreateNamespaceRequest(namespace=Namespace(name="a", labels={"x": "1"})))
    found = (await namespaces.list(ListNamespacesRequest())).namespaces
    assert [(each.name, each.labels) for each in found] == [("a", {"x": "1"})]
    with pytest.raises(errdefs.InvalidArgument):
        await namespaces.create(CreateNamespaceRequest(namespace=Namespace(name="../a")))
    await namespaces.delete(DeleteNamespaceRequest(name="a"))
    with pytest.raises(errdefs.NotFound):
        await namespaces.delete(DeleteNamespaceRequest(name="a"))


async def test_clients_publish_and_forward_events(world: World) -> None:
    events = EventsStub(world.channel)
    event = AnyMessage(type_url="containerd.events.TaskExit", value=bytes(TaskExit(container_id="x")))
    now = datetime.datetime.now(datetime.UTC)
    async with Follower(world, "event.container_id==x") as follower:
        await events.publish(PublishRequest(topic="/tasks/exit", event=event))
        envelope = Envelope(timestamp=now, namespace="other", topic="/my/topic", event=event)
        await events.forward(ForwardRequest(envelope=envelope))
        await until(lambda: len(follower.seen) == 2, "both arrive")
        assert [(each.namespace, each.topic) for each in follower.seen] == [
            ("moby", "/tasks/exit"),
            ("other", "/my/topic"),
        ]
    with pytest.raises(errdefs.InvalidArgument):
        await events.publish(PublishRequest(topic="no-slash", event=event))
    with pytest.raises(errdefs.InvalidArgument):
        await events.forward(ForwardRequest(envelope=Envelope(namespace="a", topic="/a", event=event)))
    with pytest.raises(errdefs.InvalidArgument):
        await anext(events.subscribe(SubscribeRequest(filters=["=="])))
    with pytest.raises(errdefs.InvalidArgument):
        await anext(events.subscribe(SubscribeRequest(), metadata={"buoy-events-after": "yesterday"}))
