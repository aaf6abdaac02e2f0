"""Login, manifests, tags and search at registries that answer as they like: who is told what."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import errdefs
import pytest
from dockerd_api.registries import Asking, Credentials, Registries
from http_client.proxies import Proxies

from tests.unit.registries.conftest import Host

OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()
MakeHost = Callable[[], Host]


def asking(**settings: Any) -> Asking:
    return Asking(Registries(**settings), Proxies())


def me(server: str, **fields: str) -> Credentials:
    return Credentials("me", "secret", server=server, **fields)


def with_token(registry: Host, server: Host, answer: dict[str, str], status: int = 200) -> None:
    challenge = f'Bearer realm="http://{server.name}/token?x=1",service="s"'
    registry.answers["/v2/"] = (401, {"WWW-Authenticate": challenge}, b"")
    registry.answers["/v2/ authorized"] = (200, {}, b"")
    headers = {"Content-Type": "application/json"}
    server.answers["/token"] = (status, headers, json.dumps(answer).encode())


async def test_login_by_password(make_host: MakeHost) -> None:
    registry = make_host()
    registry.answers["/v2/"] = (401, {"WWW-Authenticate": 'Basic realm="r"'}, b"")
    registry.answers["/v2/ authorized"] = (200, {}, b"")
    assert await asking().login(me(registry.name), "t") == ""
    assert registry.asked == [("/v2/", ""), ("/v2/", BASIC)]
    registry.answers["/v2/ authorized"] = (401, {}, b"")
    with pytest.raises(errdefs.Internal, match="failed with status: 401 Unauthorized"):
        await asking().login(me(f"http://{registry.name}/v1/"), "t")
    with pytest.raises(errdefs.Internal, match="no basic auth credentials"):
        await asking().login(Credentials(server=registry.name), "t")


async def test_login_by_token(make_host: MakeHost) -> None:
    registry, server = make_host(), make_host()
    with_token(registry, server, {"token": "T", "refresh_token": "R"})
    assert await asking().login(me(registry.name), "t") == "R"
    [(asked, authorization)] = server.asked
    assert authorization == BASIC
    assert asked == "/token?x=1&service=s&offline_token=true&client_id=docker&account=me"
    assert registry.authorizations() == {"", "Bearer T"}
    again = Credentials("me", identity_token="R", server=registry.name)
    assert await asking().login(again, "t") == "R"
    assert server.forms == ["scope=&service=s&client_id=docker&grant_type=refresh_token&refresh_token=R"]


async def test_the_token_server_refuses(make_host: MakeHost) -> None:
    registry, server = make_host(), make_host()
    with_token(registry, server, {"details": "incorrect username or password"}, 401)
    with pytest.raises(errdefs.Unauthenticated) as caught:
        await asking().login(me(registry.name), "t")
    assert caught.value.message == (
        f'Get "http://{registry.name}/v2/": unauthorized: incorrect username or password'
    )


async def test_a_redirect_takes_no_password_along(make_host: MakeHost) -> None:
    registry, other = make_host(), make_host()
    registry.answers["/v2/"] = (401, {"WWW-Authenticate": 'Basic realm="r"'}, b"")
    elsewhere = f"http://{other.name}/v2/"
    registry.answers["/v2/ authorized"] = (307, {"Location": elsewhere}, b"")
    other.answers["/v2/"] = (401, {"WWW-Authenticate": 'Basic realm="r"'}, b"")
    with pytest.raises(errdefs.Internal):
        await asking().login(me(registry.name), "t")
    assert other.authorizations() == {""}


async def test_credentials_of_one_registry_are_not_told_to_another(make_host: MakeHost) -> None:
    registry, mirror = make_host(), make_host()
    for host in (registry, mirror):
        host.answers["/v2/"] = (401, {"WWW-Authenticate": 'Basic realm="r"'}, b"")
    asks = asking(per_registry={registry.name: [f"http://{mirror.name}"]})
    with pytest.raises(errdefs.BuoyError):
        await asks.repository(registry.name, "a", me(registry.name), "t").inspect("1", "a:1")
    assert mirror.asked
    assert mirror.authorizations() == {""}
    assert BASIC in registry.authorizations()
    with pytest.raises(errdefs.BuoyError):
        await asking().repository(mirror.name, "a", me(registry.name), "t").inspect("1", "a:1")
    assert mirror.authorizations() == {""}


async def test_a_token_for_the_registry_goes_nowhere_else(make_host: MakeHost) -> None:
    registry, server = make_host(), make_host()
    with_token(registry, server, {"token": "T"})
    who = Credentials(registry_token="OWN", server=registry.name)
    with pytest.raises(errdefs.Internal):
        await asking().repository(registry.name, "a", who, "t").inspect("1", "a:1")
    assert registry.authorizations() == {"", "Bearer OWN"}
    assert server.asked == []


async def test_inspect(make_host: MakeHost) -> None:
    registry = make_host()
    registry.answers["/v2/"] = (200, {}, b"")
    platforms = [{"architecture": "arm", "os": "linux", "variant": "v7"}]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"platform": platforms[0]}]}
    body = json.dumps(index).encode()
    registry.answers["/v2/a/manifests/1"] = (200, {"Content-Type": INDEX}, body)
    repository = asking().repository(registry.name, "a", Credentials(), "t")
    found = await repository.inspect("1", "a:1")
    assert found["Platforms"] == platforms
    assert (found["Descriptor"]["mediaType"], found["Descriptor"]["size"]) == (INDEX, len(body))
    registry.answers["/v2/a/manifests/2"] = (200, {"Content-Type": OCI}, body)
    with pytest.raises(errdefs.InvalidArgument, match="media type"):
        await repository.inspect("2", "a:2")
    wrong = "sha256:" + "0" * 64
    registry.answers[f"/v2/a/manifests/{wrong}"] = (200, {"Content-Type": INDEX}, body)
    with pytest.raises(errdefs.Internal, match="manifest verification failed"):
        await repository.inspect(wrong, "a")
    registry.answers["/v2/a/manifests/3"] = (200, {"Content-Type": INDEX}, bytes(5 << 20))
    with pytest.raises(errdefs.ResourceExhausted):
        await repository.inspect("3", "a:3")


async def test_tags_of_all_pages(make_host: MakeHost) -> None:
    registry, other = make_host(), make_host()
    registry.answers["/v2/"] = (200, {}, b"")
    first = {"Link": '</v2/a/tags/more?n=2>; rel="next"'}
    registry.answers["/v2/a/tags/list"] = (200, first, b'{"tags": ["1", "2"]}')
    registry.answers["/v2/a/tags/more"] = (200, {}, b'{"tags": ["3"]}')
    repository = asking().repository(registry.name, "a", Credentials(), "t")
    assert await repository.tags("a") == ["1", "2", "3"]
    errors = {"errors": [{"code": "NAME_UNKNOWN", "message": "repository name not known to registry"}]}
    unknown = (404, {"Content-Type": "application/json"}, json.dumps(errors).encode())
    registry.answers["/v2/a/tags/list"] = unknown
    with pytest.raises(errdefs.NotFound) as caught:
        await repository.tags("x/a")
    assert caught.value.message == (
        "repository x/a not found: name unknown: repository name not known to registry"
    )
    assert other.asked == []


async def test_search(make_host: MakeHost) -> None:
    registry = make_host()
    results = [
        {"name": "a/b", "star_count": 5, "is_official": False, "is_automated": True, "description": "d"},
        {"name": "b", "star_count": 50, "is_official": True, "is_automated": False, "description": ""},
    ]
    registry.answers["/v1/_ping"] = (200, {}, b"")
    registry.answers["/v1/search"] = (200, {}, json.dumps({"results": results}).encode())
    term = f"{registry.name}/b"
    found = await asking().search(term, 0, {}, Credentials(), "t")
    assert [(each["name"], each["is_automated"]) for each in found] == [("a/b", False), ("b", False)]
    assert registry.asked[-1][0] == "/v1/search?q=b&n=25"
    found = await asking().search(term, 5, {"stars": ["6"]}, Credentials(), "t")
    assert [each["name"] for each in found] == ["b"]
    found = await asking().search(term, 5, {"is-official": ["false"]}, Credentials(), "t")
    assert [each["name"] for each in found] == ["a/b"]
    assert await asking().search(term, 5, {"is-automated": ["true"]}, Credentials(), "t") == []
    await asking().search(term, 5, {}, Credentials("me", "secret", server="elsewhere.invalid"), "t")
    assert registry.authorizations() == {""}
    for limit, filters in ((101, {}), (1, {"x": ["1"]}), (1, {"stars": ["x"]}), (1, {"is-official": ["x"]})):
        with pytest.raises(errdefs.InvalidArgument):
            await asking().search(term, limit, filters, Credentials(), "t")


async def test_nobody_answers() -> None:
    with pytest.raises(errdefs.Internal) as caught:
        await asking().login(me("127.0.0.1:1"), "t")
    assert caught.value.message == (
        'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'
    )
