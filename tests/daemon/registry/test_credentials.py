"""Who a registry is told that we are, over which connection, and who never is."""

from __future__ import annotations

from pathlib import Path

import errdefs
import pytest
from containerd_svc.registry import Credentials, Question, Registry, Resolver

from tests.support.registry import (
    NAME,
    PASSWORD,
    REFRESH_TOKEN,
    Authority,
    LocalRegistry,
    TokenServer,
    layer_of,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class Client:
    """Answers a registry's questions, and keeps them."""

    def __init__(self, answer: Credentials | None = None) -> None:
        self.asked: list[Question] = []
        self._answer = answer or Credentials(username=NAME, password=PASSWORD)

    async def __call__(self, question: Question) -> Credentials:
        self.asked.append(question)
        return self._answer


async def _resolved(registry: LocalRegistry, name: str, resolver: Resolver) -> str:
    async with Registry(f"{registry.address}/{name}:latest", resolver) as client:
        return str((await client.resolve())["digest"])


async def test_basic(tmp_path: Path) -> None:
    with LocalRegistry(tmp_path, htpasswd=True) as registry:
        image = registry.put_image("some/image", "latest", [layer_of({"a": b"1"})])
        client = Client()
        assert await _resolved(registry, "some/image", Resolver(credentials=client)) == image["digest"]
        assert [each.host for each in client.asked] == [registry.address]
        with pytest.raises(errdefs.PermissionDenied, match="no basic auth credentials"):
            await _resolved(registry, "some/image", Resolver())
        wrong = Client(Credentials(username=NAME, password="wrong"))
        with pytest.raises(errdefs.PermissionDenied):
            await _resolved(registry, "some/image", Resolver(credentials=wrong))


@pytest.mark.parametrize("only_get", [False, True])
async def test_tokens(tmp_path: Path, authority: Authority, only_get: bool) -> None:
    with (
        TokenServer(authority, only_get=only_get) as tokens,
        LocalRegistry(tmp_path, tokens=tokens) as registry,
    ):
        image = registry.put_image("some/image", "latest", [layer_of({"a": b"1"})])
        client = Client()
        resolver = Resolver(credentials=client)
        async with Registry(f"{registry.address}/some/image:latest", resolver) as asking:
            assert (await asking.resolve())["digest"] == image["digest"]
            await asking.manifest(image)
            assert await asking.tags() == ["latest"]
        given = [each for each in tokens.asked if each.status == 200]
        assert [each.scopes for each in given] == [["repository:some/image:pull"]]
        assert given[0].method == ("GET" if only_get else "POST")
        assert len(client.asked) == 1
        with pytest.raises(errdefs.PermissionDenied, match=r"pull access denied.*insufficient_scope"):
            await _resolved(registry, "some/image", Resolver())
        wrong = Client(Credentials(username=NAME, password="wrong"))
        with pytest.raises(
            errdefs.PermissionDenied, match="failed to authorize: failed to fetch oauth token"
        ):
            await _resolved(registry, "some/image", Resolver(credentials=wrong))


async def test_a_refresh_token_and_an_anonymous_one(tmp_path: Path, authority: Authority) -> None:
    with TokenServer(authority) as tokens, LocalRegistry(tmp_path, tokens=tokens) as registry:
        image = registry.put_image("public/image", "latest", [layer_of({"a": b"1"})])
        assert await _resolved(registry, "public/image", Resolver()) == image["digest"]
        client = Client(Credentials(refresh_token=REFRESH_TOKEN))
        private = registry.put_image("own/image", "latest", [layer_of({"a": b"2"})])
        assert await _resolved(registry, "own/image", Resolver(credentials=client)) == private["digest"]
        assert tokens.asked[-1].form["grant_type"] == "refresh_token"


async def test_tls_by_certs_d(tmp_path: Path, authority: Authority) -> None:
    with LocalRegistry(tmp_path / "r", tls=authority, client_certificates=False) as registry:
        image = registry.put_image("some/image", "latest", [layer_of({"a": b"1"})])
        known = str(authority.host_dir(tmp_path / "certs.d", registry))
        assert await _resolved(registry, "some/image", Resolver(host_dir=known)) == image["digest"]
        (tmp_path / "certs.d" / registry.address / "ca.crt").unlink()
        other = tmp_path / "certs.d" / registry.address / "hosts.toml"
        other.write_text(f'server = "https://{registry.address}"\n')
        with pytest.raises(errdefs.Unavailable, match="certificate signed by unknown authority"):
            await _resolved(registry, "some/image", Resolver(host_dir=known))
        other.write_text(f'server = "https://{registry.address}"\nca = "{authority.certificate}"\n')
        assert await _resolved(registry, "some/image", Resolver(host_dir=known)) == image["digest"]


async def test_a_client_s_certificate(tmp_path: Path, authority: Authority) -> None:
    with LocalRegistry(tmp_path / "r", tls=authority, client_certificates=True) as registry:
        known = str(authority.host_dir(tmp_path / "certs.d", registry, client=True))
        with pytest.raises(errdefs.NotFound):
            await _resolved(registry, "no/image", Resolver(host_dir=known))
        (tmp_path / "certs.d" / registry.address / "client.key").unlink()
        with pytest.raises(errdefs.InvalidArgument, match=r"missing key client\.key"):
            await _resolved(registry, "no/image", Resolver(host_dir=known))
        (tmp_path / "certs.d" / registry.address / "client.cert").unlink()
        with pytest.raises(errdefs.Unavailable):
            await _resolved(registry, "no/image", Resolver(host_dir=known))
