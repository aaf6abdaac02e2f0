"""Images as the API shows them: list, inspect, history."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dockerd_api.images.filters import moment
from dockerd_api.images.model import PARENT, Image, Manifest
from dockerd_api.images.unpack import SNAPSHOTTER
from dockerd_api.images.walking import Part, Walk

Version = tuple[int, int]
# Bytes on disk of a snapshot, 0 for one that is not there.
Unpacked = Callable[[str], int]

_OF_IMAGES = (
    *("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels"),
    *("StopSignal", "ArgsEscaped", "Healthcheck", "OnBuild", "Shell"),
)
# What was always shown with an image's config while it had a container's type.
_OF_CONTAINERS: Mapping[str, Any] = {
    **dict.fromkeys(("Hostname", "Domainname", "User", "Image", "WorkingDir"), ""),
    **dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr"), False),
    **dict.fromkeys(("Tty", "OpenStdin", "StdinOnce"), False),
    **dict.fromkeys(("Env", "Cmd", "Volumes", "Entrypoint", "OnBuild", "Labels")),
}
_ZERO_TIME = "0001-01-01T00:00:00Z"


def created_at(config: Mapping[str, Any]) -> float:
    """Seconds since 1970; 0 for an image that does not say."""
    return moment(str(config.get("created") or "")) or 0.0


def chains(walk: Walk) -> set[str]:
    """The snapshots that belong to an image, those of all its platforms."""
    return {
        chain
        for part in walk.parts
        if part.manifest is not None and part.available
        for chain in part.manifest.chains
    }


def total_size(walk: Walk, unpacked: Unpacked) -> int:
    """Bytes of all that an image's manifests have here: blobs and snapshots."""
    return sum(part.content + _unpacked(part, unpacked) for part in walk.parts)


def summary(
    image: Image, walk: Walk, unpacked: Unpacked, *, containers: int, shared_size: int
) -> dict[str, Any]:
    """One entry of `GET /images/json`."""
    return {
        "Containers": containers,
        "Created": int(created_at(image.config)),
        "Descriptor": image.target.document(),
        "Id": image.id,
        "Labels": _config(image.config).get("Labels"),
        "ParentId": image.labels.get(PARENT, ""),
        "RepoDigests": list(image.repo_digests),
        "RepoTags": list(image.repo_tags),
        "SharedSize": shared_size,
        "Size": total_size(walk, unpacked),
    }


def manifests(walk: Walk, unpacked: Unpacked, users: Callable[[str], Sequence[str]]) -> list[dict[str, Any]]:
    """The `Manifests` of an image. `users` answers the containers that were made from a manifest."""
    return [_manifest(part, unpacked, users) for part in walk.parts]


def details(image: Image, size: int, version: Version) -> dict[str, Any]:
    """`GET /images/{name}/json` for an API version; `size` in bytes."""
    config = image.config
    here = image.manifest is not None
    answer: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Parent": image.labels.get(PARENT, ""),
        "Comment": _last_comment(config),
        "Created": image.created or (_ZERO_TIME if version < (1, 44) else ""),
        "DockerVersion": "",
        "Author": config.get("author") or "",
        "Config": _shown_config(_config(config), version) if here or version < (1, 50) else None,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": size,
        "GraphDriver": {"Data": None, "Name": SNAPSHOTTER},
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]} if here else {},
        "Metadata": {"LastTagTime": _stamp(image.tagged_at) if image.tagged_at else _ZERO_TIME},
    }
    if config.get("variant"):
        answer["Variant"] = config["variant"]
    if config.get("os.version"):
        answer["OsVersion"] = config["os.version"]
    if version >= (1, 44) and not answer["Created"]:
        del answer["Created"]
    if version < (1, 44):
        answer["VirtualSize"] = size
    if version >= (1, 48):
        answer["Descriptor"] = image.target.document()
    return answer


def history(image: Image, manifest: Manifest, unpacked: Unpacked) -> list[dict[str, Any]]:
    """`GET /images/{name}/history`: newest first, bytes on disk for the steps that made a layer."""
    sizes = iter([unpacked(chain) for chain in manifest.chains])
    steps = []
    for step in manifest.config.get("history") or []:
        size = 0 if step.get("empty_layer") else next(sizes, 0)
        steps.append(
            {
                "Comment": step.get("comment") or "",
                "Created": int(moment(step.get("created") or "") or 0),
                "CreatedBy": step.get("created_by") or "",
                "Id": "<missing>",
                "Size": size,
                "Tags": None,
            }
        )
    steps.reverse()
    if steps:
        steps[0]["Id"] = image.id
        steps[0]["Tags"] = list(image.repo_tags) or None
    return steps


def _manifest(part: Part, unpacked: Unpacked, users: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    taken = _unpacked(part, unpacked)
    shown: dict[str, Any] = {
        "ID": part.descriptor.digest,
        "Descriptor": part.descriptor.document(),
        "Available": part.available,
        "Size": {"Content": part.content, "Total": part.content + taken},
        "Kind": part.kind,
    }
    if part.kind == "image":
        shown["ImageData"] = {
            "Platform": part.platform.document(),
            "Size": {"Unpacked": taken},
            "Containers": list(users(part.descriptor.digest)),
        }
    elif part.kind == "attestation":
        shown["AttestationData"] = {"For": part.descriptor.attests}
    return shown


def _unpacked(part: Part, unpacked: Unpacked) -> int:
    if part.manifest is None or not part.available:
        return 0
    return sum(unpacked(chain) for chain in part.manifest.chains)


def _config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("config") or {}


def _shown_config(config: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """The config's keys that OCI and Docker know of an image; before 1.50 with those of a container, which
    are empty.
    """
    known = {key: config[key] for key in _OF_IMAGES if config.get(key)}
    return known if version >= (1, 50) else {**_OF_CONTAINERS, **known}


def _last_comment(config: Mapping[str, Any]) -> str:
    steps = config.get("history") or []
    return (steps[-1].get("comment") or "") if steps else ""


def _stamp(when: float) -> str:
    return datetime.datetime.fromtimestamp(when, datetime.UTC).isoformat().replace("+00:00", "Z")
