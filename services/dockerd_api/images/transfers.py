"""Transfers that containerd does, between a registry and its store: watched, and asked who the user is.

(containerd core/transfer) Progress and questions come over streams of containerd's Streaming service. The
questions are answered here, so that a password goes only where its owner meant it to.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any

import betterproto2
import errdefs
import grpclib.client
from grpclib.const import Cardinality
from h2.exceptions import H2Error
from pb.containerd.services.streaming.v1 import StreamInit
from pb.containerd.services.transfer.v1 import TransferOptions, TransferRequest, TransferStub
from pb.containerd.types.transfer import (
    AuthRequest,
    AuthResponse,
    AuthType,
    OciRegistry,
    Progress,
    RegistryResolver,
)
from pb.google.protobuf import Any as AnyMessage
from pb.message_pool import default_message_pool
from rpc.grpc import Channel

from dockerd_api.images.reference import Reference
from dockerd_api.registries import Credentials
from dockerd_api.registries.hosts import Hosts

_LONGEST = 24 * 3600.0  # seconds of a transfer; containerd gives a registry that is silent up long before
_LAST_WORDS = 1.0  # seconds in which the progress of a transfer that is over must end
_PACE = 0.1  # seconds between looks at the progress, as Docker's
_STREAM = "/containerd.services.streaming.v1.Streaming/Stream"

_Wire = grpclib.client.Stream[AnyMessage, AnyMessage]


class Transfers:
    """The transfer service of one containerd. `metadata` goes along with every transfer."""

    def __init__(self, channel: Channel, hosts: Hosts, *, metadata: Mapping[str, str]) -> None:
        self._channel = channel
        self._hosts = hosts
        self._metadata = dict(metadata)

    async def pull(
        self,
        name: Reference,
        store: betterproto2.Message,
        credentials: Credentials,
        user_agent: str,
        told: Callable[[Progress], None],
    ) -> None:
        """From the registry that `name` says. Errors are containerd's."""
        async with self._registry(name, credentials, user_agent) as registry:
            await self._transfer(registry, store, told)

    async def push(
        self,
        name: Reference,
        store: betterproto2.Message,
        credentials: Credentials,
        user_agent: str,
        told: Callable[[Progress], None],
    ) -> None:
        """To the registry that `name` says. Errors are containerd's."""
        async with self._registry(name, credentials, user_agent) as registry:
            await self._transfer(store, registry, told)

    @contextlib.asynccontextmanager
    async def _registry(
        self, name: Reference, credentials: Credentials, user_agent: str
    ) -> AsyncIterator[OciRegistry]:
        """The registry, with somebody who answers its questions."""
        resolver = RegistryResolver(
            headers={"User-Agent": user_agent}, host_dir=await self._hosts.directory_for(name.domain)
        )
        if not credentials:
            yield OciRegistry(reference=str(name), resolver=resolver)
            return
        resolver.auth_stream = f"auth-{secrets.token_hex(8)}"
        async with self._opened(resolver.auth_stream) as stream:
            answering = asyncio.create_task(_answer(stream, credentials, name.domain))
            try:
                yield OciRegistry(reference=str(name), resolver=resolver)
            finally:
                await _ended(answering)

    async def _transfer(
        self,
        source: betterproto2.Message,
        destination: betterproto2.Message,
        told: Callable[[Progress], None],
    ) -> None:
        name = f"progress-{secrets.token_hex(8)}"
        async with self._opened(name) as stream:
            await stream.end()  # nothing more is sent, so that the other end can close it in peace
            listening = asyncio.create_task(_listen(stream, told))
            try:
                await TransferStub(self._channel).transfer(
                    TransferRequest(
                        source=_packed(source),
                        destination=_packed(destination),
                        options=TransferOptions(progress_stream=name),
                    ),
                    timeout=_LONGEST,
                    metadata=self._metadata,
                )
                await asyncio.wait({listening}, timeout=_LAST_WORDS)
            finally:
                await _ended(listening)

    @contextlib.asynccontextmanager
    async def _opened(self, name: str) -> AsyncIterator[_Wire]:
        """A stream that containerd has confirmed."""
        call = self._channel.request(_STREAM, Cardinality.STREAM_STREAM, AnyMessage, AnyMessage)
        stream = await call.__aenter__()
        try:
            await stream.send_message(_packed(StreamInit(id=name)))
            if await stream.recv_message() is None:
                raise errdefs.Unavailable("containerd ends a stream that was just opened")
        except BaseException as error:
            await call.__aexit__(type(error), error, error.__traceback__)
            raise
        try:
            yield stream
        finally:
            # How it ends is of no interest: the transfer itself says how that went.
            with contextlib.suppress(H2Error):
                await stream.cancel()
            with contextlib.suppress(errdefs.BuoyError):
                await call.__aexit__(None, None, None)


async def watched(
    work: Coroutine[Any, Any, None], messages: Callable[[], Iterator[bytes]]
) -> AsyncGenerator[bytes]:
    """What `messages` has to say while the work goes on, looked at often enough. Raises as the work does; the
    work ends when nobody listens any more.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_PACE)
            if task.done() and task.exception() is None:
                break
            for message in messages():
                yield message
        task.result()
    finally:
        await _ended(task)


async def _listen(stream: _Wire, told: Callable[[Progress], None]) -> None:
    """Takes in all that containerd tells, as fast as it comes."""
    while (message := await stream.recv_message()) is not None:
        if message.type_url.endswith("containerd.types.transfer.Progress"):
            told(Progress.parse(message.value))


async def _answer(stream: _Wire, credentials: Credentials, domain: str) -> None:
    while (message := await stream.recv_message()) is not None:
        request = AuthRequest.parse(message.value)
        await stream.send_message(_packed(_response(request, credentials, domain)))


def _response(request: AuthRequest, credentials: Credentials, domain: str) -> AuthResponse:
    """Nothing for another host than the one that the credentials are good for."""
    if request.host != credentials.host(domain):
        return AuthResponse()
    if credentials.registry_token:
        return AuthResponse(auth_type=AuthType.HEADER, secret=f"Bearer {credentials.registry_token}")
    if credentials.identity_token:
        return AuthResponse(auth_type=AuthType.REFRESH, secret=credentials.identity_token)
    return AuthResponse(
        auth_type=AuthType.CREDENTIALS, username=credentials.username, secret=credentials.password
    )


async def _ended(task: asyncio.Future[None]) -> None:
    """End it, and wait until it has; its error is of no more interest."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


def _packed(message: betterproto2.Message) -> AnyMessage:
    """As containerd's clients pack it."""
    name = default_message_pool.type_to_url[type(message)].rpartition("/")[2]
    return AnyMessage(type_url=name, value=bytes(message))
