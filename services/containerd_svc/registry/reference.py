"""Names of images as a registry is asked for them (distribution/reference)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import errdefs

from containerd_svc.ingest import check_digest

_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_LONGEST = 255  # characters of host and repository


@dataclass(frozen=True)
class Reference:
    """host: as the name says it (`docker.io`); repository: behind it; tag and digest: empty or valid."""

    host: str
    repository: str
    tag: str
    digest: str

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def name(self) -> str:
        """Host and repository."""
        return f"{self.host}/{self.repository}"

    @property
    def object(self) -> str:
        """What a manifest is asked for by: the digest, which is exact, or else the tag."""
        return self.digest or self.tag

    @classmethod
    def parse(cls, text: str) -> Reference:
        """A normal reference: `docker.io/library/busybox:latest`, with a digest behind `@` or not.

        Raises InvalidArgument for everything else.
        """
        rest, at, digest = text.partition("@")
        host, slash, path = rest.partition("/")
        repository, _, tag = path.partition(":")
        wrong = (
            not slash
            or len(host) + len(repository) >= _LONGEST
            or not _HOST.fullmatch(host)
            or not _REPOSITORY.fullmatch(repository)
            or (":" in path and not _TAG.fullmatch(tag))
        )
        if wrong:
            raise errdefs.InvalidArgument(f'"{text[:300]}": invalid reference format')
        return cls(host, repository, tag, check_digest(digest) if at else "")
