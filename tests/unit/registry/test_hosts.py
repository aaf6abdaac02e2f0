"""Where a registry is reached, and through which proxy."""

from __future__ import annotations

from pathlib import Path

import errdefs
import pytest
from containerd_svc.registry.auth import merged
from containerd_svc.registry.hosts import hosts_of
from containerd_svc.registry.reference import Reference
from http_client.challenges import challenges


def test_without_settings() -> None:
    (hub,) = hosts_of("docker.io")
    assert (hub.scheme, hub.address, hub.path) == ("https", "registry-1.docker.io", "/v2")
    (own,) = hosts_of("localhost:5000")
    assert own.try_plain
    assert not hosts_of("reg.example:5000")[0].try_plain
    assert hosts_of("reg.example", default_scheme="http")[0].scheme == "http"


def test_mirrors_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "docker.io"
    folder.mkdir()
    (folder / "hosts.toml").write_text(
        """
        [host."http://one.example:5000"]
        capabilities = ["pull", "resolve"]
        dial_timeout = "500ms"
        [host."https://two.example/some/path"]
        override_path = true
        skip_verify = true
        client = [["a.cert", "a.key"]]
        [host."https://two.example/some/path".header]
        x-one = ["1", "2"]
        """
    )
    one, two, hub = hosts_of("docker.io", str(tmp_path))
    assert (one.scheme, one.address, one.path, one.mirror) == ("http", "one.example:5000", "/v2", True)
    assert one.dial_timeout == 0.5
    assert one.capabilities == {"pull", "resolve"}
    assert two.path == "/some/path"
    assert two.headers == (("x-one", "1"), ("x-one", "2"))
    assert two.tls.client == (str(folder / "a.cert"), str(folder / "a.key"))
    assert (hub.address, hub.mirror) == ("registry-1.docker.io", False)


@pytest.mark.parametrize(
    "text",
    [
        "server = 1",
        "servers = 'https://a'",
        'server = "ftp://a"',
        'capabilities = ["fly"]',
        'dial_timeout = "soon"',
        'client = [["a", "b", "c"]]',
        "[host.'https://a']\nserver = 'b'",
        "not toml",
    ],
)
def test_settings_that_cannot_be_followed(tmp_path: Path, text: str) -> None:
    (tmp_path / "reg.example").mkdir()
    (tmp_path / "reg.example" / "hosts.toml").write_text(text)
    with pytest.raises(errdefs.InvalidArgument, match=r"hosts\.toml"):
        hosts_of("reg.example", str(tmp_path))


def test_challenges_and_scopes() -> None:
    first, second = challenges(['Bearer realm="https://a/t?x=\\"1\\"",service=s, Basic realm="x, y"'])
    assert (first.scheme, first.parameters) == ("bearer", {"realm": 'https://a/t?x="1"', "service": "s"})
    assert (second.scheme, second.parameters) == ("basic", {"realm": "x, y"})
    asked = frozenset({"repository:a:pull", "repository:a:push", "repository:b:pull"})
    assert merged(asked) == {"repository:a:pull,push", "repository:b:pull"}


@pytest.mark.parametrize("text", ["busybox", "a.b/C:x", "a.b/c:", "a.b/c@sha256:00", "a.b/c:x/y", "a b/c"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        Reference.parse(text)
