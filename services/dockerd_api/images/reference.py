"""Docker's image names: the grammar, the normal form and the familiar form.

`busybox` means `docker.io/library/busybox`, with the tag `latest` where one is needed. The grammar and its
error texts are those of github.com/distribution/reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import errdefs

_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_COMPONENT}(?:\.{_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<name>(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_PATH_PART}(?:/{_PATH_PART})*))"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_ANCHORED_TAG = re.compile(_TAG)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_DEFAULT_DOMAIN = "docker.io"
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Reference:
    """A repository by its full name, with what a user added to it; empty tag and digest: none was given."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """`docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """`busybox`."""
        if self.domain != _DEFAULT_DOMAIN:
            return self.name
        short = self.path.removeprefix("library/")
        return self.path if "/" in short else short

    def __str__(self) -> str:
        """The full form, as containerd's images are named."""
        return self.name + self._suffix()

    @property
    def familiar(self) -> str:
        """As Docker shows it."""
        return self.familiar_name + self._suffix()

    def tagged(self) -> Reference:
        """With the tag `latest` when neither tag nor digest was given."""
        if self.tag or self.digest:
            return self
        return Reference(self.domain, self.path, "latest")

    def with_digest(self, digest: str) -> Reference:
        """The repository at this digest, without the tag."""
        return Reference(self.domain, self.path, "", digest)

    def without_digest(self) -> Reference:
        """The repository with its tag alone."""
        return Reference(self.domain, self.path, self.tag)

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """A name as a user writes it. Raises InvalidArgument with Docker's words."""
    if _IDENTIFIER.fullmatch(text):
        raise errdefs.InvalidArgument(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        )
    domain, remainder = _split_domain(text)
    remote = remainder.partition(":")[0]
    if remote.lower() != remote:
        raise errdefs.InvalidArgument(
            f"invalid reference format: repository name ({remote}) must be lowercase"
        )
    found = _REFERENCE.fullmatch(f"{domain}/{remainder}")
    if found is None:
        raise errdefs.InvalidArgument("invalid reference format")
    # The domain that was split off must be what the grammar takes for one.
    if found["domain"] != domain:
        raise errdefs.InvalidArgument("invalid reference format")
    if len(found["path"]) > _LONGEST_NAME:
        raise errdefs.InvalidArgument("repository name must not be more than 255 characters")
    digest = found["digest"] or ""
    if digest:
        _check_digest(digest)
    return Reference(domain, found["path"], found["tag"] or "", digest)


def parse_tag(text: str) -> Reference:
    """A name with a tag and without a digest. Raises InvalidArgument."""
    tag = parse(text)
    if not tag.tag or tag.digest:
        raise errdefs.InvalidArgument(f'invalid tag "{text}"')
    return tag


def parse_repository(repository: str, tag: str) -> Reference | None:
    """The `repo` and `tag` parameters of an API call, tagged; None when `repo` is empty. `tag` may not be a
    digest.
    """
    if not repository:
        return None
    reference = parse(repository)
    if reference.digest:
        raise errdefs.InvalidArgument("cannot import digest reference")
    if tag:
        if not _ANCHORED_TAG.fullmatch(tag):
            raise errdefs.InvalidArgument("invalid tag format")
        return Reference(reference.domain, reference.path, tag)
    return reference.tagged()


def with_tag(name: Reference, tag: str) -> Reference:
    """The repository's tag. Raises InvalidArgument for what is none."""
    if not _ANCHORED_TAG.fullmatch(tag):
        raise errdefs.InvalidArgument("invalid tag format")
    return Reference(name.domain, name.path, tag, name.digest)


def with_tag_or_digest(name: Reference, text: str) -> Reference:
    """What a parameter `tag` makes of a name: it may be a digest. Raises InvalidArgument."""
    if ":" in text:
        if not re.fullmatch(_DIGEST, text):
            raise errdefs.InvalidArgument("invalid tag format")
        _check_digest(text)
        return Reference(name.domain, name.path, "", text)
    return with_tag(name, text)


def identifier(text: str) -> str:
    """`sha256:<hex>` when the text is an image id or a digest in full, else empty."""
    if _IDENTIFIER.fullmatch(text):
        return f"sha256:{text}"
    algorithm, _, encoded = text.partition(":")
    if _LENGTHS.get(algorithm) == len(encoded) and re.fullmatch(r"[a-f0-9]+", encoded):
        return text
    return ""


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash or (
        not any(mark in first for mark in ".:") and first != "localhost" and first.lower() == first
    ):
        domain, remainder = _DEFAULT_DOMAIN, text
    else:
        domain, remainder = first, rest
    if domain == "index.docker.io":
        domain = _DEFAULT_DOMAIN
    if domain == _DEFAULT_DOMAIN and "/" not in remainder:
        remainder = f"library/{remainder}"
    return domain, remainder


def _check_digest(digest: str) -> None:
    algorithm, _, encoded = digest.partition(":")
    length = _LENGTHS.get(algorithm)
    if length is None:
        raise errdefs.InvalidArgument("unsupported digest algorithm")
    if len(encoded) != length:
        raise errdefs.InvalidArgument("invalid checksum digest length")
    if not re.fullmatch(r"[a-f0-9]+", encoded):
        raise errdefs.InvalidArgument("invalid checksum digest format")
