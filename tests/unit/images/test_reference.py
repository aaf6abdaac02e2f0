"""Docker's grammar of image names; the expected answers are those of the real engine."""

from __future__ import annotations

import errdefs
import pytest
from dockerd_api.images import reference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox", "busybox"),
        ("foo/bar", "docker.io/foo/bar", "foo/bar"),
        ("library/foo/bar", "docker.io/library/foo/bar", "library/foo/bar"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
        ("quay.io/a/b_c/d--e", "quay.io/a/b_c/d--e", "quay.io/a/b_c/d--e"),
        ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
        ("Uppercase.io/x", "Uppercase.io/x", "Uppercase.io/x"),
        (f"a@sha256:{HEX}", f"docker.io/library/a@sha256:{HEX}", f"a@sha256:{HEX}"),
        (f"a:t@sha256:{HEX}", f"docker.io/library/a:t@sha256:{HEX}", f"a:t@sha256:{HEX}"),
    ],
)
def test_names(text: str, full: str, familiar: str) -> None:
    name = reference.parse(text)
    assert (str(name), name.familiar) == (full, familiar)
    assert reference.parse(str(name)) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        ("NOPE", "invalid reference format: repository name (library/NOPE) must be lowercase"),
        ("foo/Bar:x", "invalid reference format: repository name (foo/Bar) must be lowercase"),
        ("-x", "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("a__b___c", "invalid reference format"),
        ("a:" + "t" * 129, "invalid reference format"),
        ("busybox:x@y", "invalid reference format"),
        ("../etc", "invalid reference format"),
        ("a@sha256:" + "g" * 64, "invalid reference format"),
        ("a@sha256:" + "a" * 63, "invalid checksum digest length"),
        ("a@md5:" + "a" * 32, "unsupported digest algorithm"),
        ("a/" * 130 + "a", "repository name must not be more than 255 characters"),
        ("x\n", "invalid reference format"),
        (HEX, f"invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(errdefs.InvalidArgument) as caught:
        reference.parse(text)
    assert caught.value.message == message


def test_repository_and_tag() -> None:
    assert str(reference.parse_repository("a", "")) == "docker.io/library/a:latest"
    assert str(reference.parse_repository("a:x", "")) == "docker.io/library/a:x"
    assert str(reference.parse_repository("a", "v1")) == "docker.io/library/a:v1"
    assert reference.parse_repository("", "v1") is None
    with pytest.raises(errdefs.InvalidArgument):
        reference.parse_repository("a", "bad tag")
    with pytest.raises(errdefs.InvalidArgument):
        reference.parse_repository(f"a@sha256:{HEX}", "")


def test_identifiers() -> None:
    assert reference.identifier(HEX) == f"sha256:{HEX}"
    assert reference.identifier(f"sha256:{HEX}") == f"sha256:{HEX}"
    assert reference.identifier("abc") == ""
    assert reference.identifier(f"sha256:{HEX}0") == ""
