"""Settings of registries, proxies and credentials: what holds, what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import errdefs
import pytest
from dockerd_api.registries import Credentials, Registries, credentials
from dockerd_api.registries.endpoints import endpoints
from dockerd_api.registries.user_agent import user_agent


@pytest.mark.parametrize(
    ("registry", "insecure"),
    [
        ("localhost:5000", True),
        ("127.3.2.1", True),
        ("[::1]:5000", True),
        ("10.1.2.3:5000", True),
        ("a.example", True),
        ("a.example:80", False),
        ("192.0.2.1", False),
        ("no.such.invalid", False),
        ("docker.io", False),
    ],
)
async def test_insecure(registry: str, insecure: bool) -> None:
    registries = Registries(insecure=["10.0.0.0/8", "http://a.example"])
    assert await registries.is_insecure(registry) is insecure


@pytest.mark.parametrize("entry", ["-a", "ftp://a", "a b", "a:99999", "a/b"])
def test_insecure_refused(entry: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        Registries(insecure=[entry])


@pytest.mark.parametrize("mirror", ["a.example", "ftp://a", "http://a/?q", "http://u:p@a/", "http://"])
def test_mirrors_refused(mirror: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match="invalid mirror") as caught:
        Registries(mirrors=[mirror])
    assert "u:p" not in caught.value.message


async def test_endpoints_and_document() -> None:
    registries = Registries(
        insecure=["b.example:5000"],
        mirrors=["https://m.example", "https://m.example/"],
        per_registry={"c.example": ["http://127.0.0.1:5000/x"]},
    )
    found = await endpoints(registries, "index.docker.io", mirrors=True)
    assert [each.url for each in found] == ["https://m.example", "https://registry-1.docker.io"]
    found = await endpoints(registries, "docker.io", mirrors=False)
    assert [each.url for each in found] == ["https://registry-1.docker.io"]
    found = await endpoints(registries, "c.example", mirrors=True)
    assert [(each.url, each.mirror) for each in found] == [
        ("http://127.0.0.1:5000/x", True),
        ("https://c.example", False),
    ]
    found = await endpoints(registries, "b.example:5000", mirrors=True)
    assert [each.url for each in found] == ["https://b.example:5000", "http://b.example:5000"]
    document = registries.document()
    assert document["Mirrors"] == ["https://m.example/"]
    assert document["InsecureRegistryCIDRs"] == ["::1/128", "127.0.0.0/8"]
    assert document["IndexConfigs"]["docker.io"] == {
        "Name": "docker.io",
        "Mirrors": ["https://m.example/"],
        "Secure": True,
        "Official": True,
    }
    assert document["IndexConfigs"]["b.example:5000"]["Secure"] is False


def test_certificates(tmp_path: Path) -> None:
    registries = Registries(certs_dir=tmp_path)
    folder = tmp_path / "a.example:5000"
    folder.mkdir()
    for name in ("ca.crt", "me.cert", "me.key"):
        (folder / name).touch()
    found = registries.certificates_of("a.example:5000")
    assert found.authorities == (f"{folder}/ca.crt",)
    assert found.clients == ((f"{folder}/me.cert", f"{folder}/me.key"),)
    assert registries.certificates_of("a.example").authorities == ()
    (folder / "me.key").unlink()
    with pytest.raises(errdefs.InvalidArgument, match=r"missing key me\.key for client certificate me\.cert"):
        registries.certificates_of("a.example:5000")


def header(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()


def test_credentials() -> None:
    found = credentials.of_header(
        header({"username": "ü?>", "password": "p", "serveraddress": "https://a/v1/"})
    )
    assert found == Credentials("ü?>", "p", server="https://a/v1/")
    assert found.host("b") == "a"
    assert credentials.of_header(header({"auth": base64.b64encode(b"u:p:q").decode()})) == Credentials(
        "u", "p:q"
    )
    assert Credentials("u", "p").host("docker.io") == "registry-1.docker.io"
    assert Credentials("u", "p", server="https://index.docker.io/v1/").host("x") == "registry-1.docker.io"
    for malformed in ("", "!!!", "e30", header([]), header({"username": 3}), "A" * 100_000):
        assert credentials.of_header(malformed) == Credentials()
    with pytest.raises(errdefs.InvalidArgument, match=r"cannot unmarshal number into .*username"):
        credentials.of_document({"username": 3})
    assert "secret" not in repr(Credentials("u", "secret", "secret", "secret"))


def test_user_agent() -> None:
    assert user_agent("").startswith("docker/")
    assert user_agent("a (b)\r\nX: y").endswith(r" UpstreamClient(a \(b\)X: y)")
