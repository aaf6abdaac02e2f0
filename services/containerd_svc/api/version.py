"""containerd.services.version.v1.Version."""

from __future__ import annotations

from pb.containerd.services.version.v1 import VersionBase, VersionResponse
from pb.google.protobuf import Empty


class VersionService(VersionBase):
    """What this daemon is."""

    def __init__(self, version: str, revision: str) -> None:
        self._answer = VersionResponse(version=version, revision=revision)

    async def version(self, message: Empty) -> VersionResponse:
        return self._answer
