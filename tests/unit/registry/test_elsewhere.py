"""Nothing that proves who we are goes to another host (CVE-2020-15157, CVE-2021-41092, CVE-2026-33540)."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable

import errdefs
import httpx
import pytest
from containerd_svc.registry import Credentials, Question, Registry, Resolver

_BLOB = b"bytes of a layer"
_DIGEST = f"sha256:{hashlib.sha256(_BLOB).hexdigest()}"
_LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": _DIGEST, "size": len(_BLOB)}
Answer = Callable[[httpx.Request], httpx.Response]


class World:
    """All hosts at once: what each answers, and what each was sent."""

    def __init__(self, **answers: Answer) -> None:
        self.seen: list[httpx.Request] = []
        self.asked: list[Question] = []
        self._answers = {host.replace("_", "."): answer for host, answer in answers.items()}

    def resolver(self) -> Resolver:
        return Resolver(
            headers={"X-Secret": "of the registry"},
            credentials=self._who,
            transport=lambda own, proxy: httpx.MockTransport(self._answer),
        )

    def sent_to(self, host: str) -> list[httpx.Request]:
        return [each for each in self.seen if each.url.host == host]

    async def _who(self, question: Question) -> Credentials:
        self.asked.append(question)
        return Credentials(username="ann", password="secret")

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.seen.append(request)
        made = self._answers[request.url.host](request)
        # As from the network: not read yet.
        return httpx.Response(made.status_code, headers=made.headers, content=_pieces(made.content))


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _fetched(world: World, descriptor: dict[str, object]) -> bytes:
    async with (
        Registry("reg.example/some/image:latest", world.resolver()) as registry,
        registry.fetch(descriptor) as blob,
    ):
        return b"".join([piece async for piece in blob])


def _wants_basic(then: Answer) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        if "authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return then(request)

    return answer


def _bare(request: httpx.Request) -> None:
    assert "authorization" not in request.headers
    assert "x-secret" not in request.headers
    assert b"secret" not in request.content
    assert "secret" not in str(request.url)


async def test_a_redirect() -> None:
    world = World(
        reg_example=_wants_basic(
            lambda _: httpx.Response(307, headers={"Location": "https://cdn.example/b"})
        ),
        cdn_example=lambda _: httpx.Response(200, content=_BLOB),
    )
    assert await _fetched(world, _LAYER) == _BLOB
    assert world.sent_to("reg.example")[-1].headers["authorization"].startswith("Basic ")
    (there,) = world.sent_to("cdn.example")
    _bare(there)


async def test_a_challenge_behind_a_redirect() -> None:
    realm = 'Bearer realm="https://evil.example/token",service="s",scope="repository:some/image:pull"'
    world = World(
        reg_example=lambda _: httpx.Response(307, headers={"Location": "https://evil.example/b"}),
        evil_example=lambda _: httpx.Response(401, headers={"WWW-Authenticate": realm}),
    )
    with pytest.raises(errdefs.PermissionDenied):
        await _fetched(world, _LAYER)
    assert world.asked == []
    for request in world.sent_to("evil.example"):
        _bare(request)


async def test_a_layer_from_elsewhere() -> None:
    world = World(
        reg_example=_wants_basic(lambda _: httpx.Response(404)),
        evil_example=lambda _: httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'}),
        good_example=lambda _: httpx.Response(200, content=_BLOB),
    )
    foreign = {**_LAYER, "urls": ["https://evil.example/b", "https://good.example/b"]}
    assert await _fetched(world, foreign) == _BLOB
    assert [each.host for each in world.asked] == ["reg.example"]
    for request in world.sent_to("evil.example") + world.sent_to("good.example"):
        _bare(request)


async def test_a_token_server_without_tls() -> None:
    realm = 'Bearer realm="http://tokens.example/token",service="s"'
    world = World(reg_example=lambda _: httpx.Response(401, headers={"WWW-Authenticate": realm}))
    with pytest.raises(errdefs.PermissionDenied, match="does not use TLS"):
        await _fetched(world, _LAYER)
    assert world.sent_to("tokens.example") == []


async def test_an_upload_that_is_sent_elsewhere() -> None:
    world = World(
        reg_example=lambda _: httpx.Response(307, headers={"Location": "https://evil.example/b"}),
    )
    async with Registry("reg.example/some/image:latest", world.resolver()) as registry:
        with pytest.raises(errdefs.PermissionDenied, match="not followed"):
            await registry.put_manifest("latest", "application/vnd.oci.image.manifest.v1+json", b"{}")
    assert world.sent_to("evil.example") == []
