"""Images as the API shows them: list, inspect, history, and the list's filters."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import errdefs

from dockerd_api.images import reference
from dockerd_api.images.model import Image, chain_ids
from dockerd_api.images.unpack import SNAPSHOTTER

Filters = Mapping[str, Sequence[str]]

_ACCEPTED = ("dangling", "label", "label!", "before", "since", "reference", "until")
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_ZERO_TIME = "0001-01-01T00:00:00Z"
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|m|s|ms|us|ns)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def parse_filters(text: str) -> Filters:
    """The `filters` parameter: {"key": ["value"]} or the old {"key": {"value": true}}. Raises
    InvalidArgument.
    """
    if not text:
        return {}
    try:
        document = json.loads(text)
    except ValueError as error:
        raise errdefs.InvalidArgument("invalid filter") from error
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument("invalid filter")
    filters: dict[str, list[str]] = {}
    for key, values in document.items():
        if isinstance(values, dict):
            values = [value for value, wanted in values.items() if wanted]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise errdefs.InvalidArgument("invalid filter")
        filters[key] = values
    for key in filters:
        if key not in _ACCEPTED:
            raise errdefs.InvalidArgument(f"invalid filter '{key}'")
    return filters


def created_at(image: Image) -> float:
    """Seconds since 1970; 0 for an image that does not say."""
    return _moment(image.created) or 0.0


def choose(images: Sequence[Image], filters: Filters, resolve: Callable[[str], Image]) -> list[Image]:
    """The images that match, newest first. `resolve` finds the image that `before` and `since` name."""
    dangling = _boolean(filters, "dangling")
    before = [created_at(resolve(name)) for name in filters.get("before", ())]
    before += [_until(text) for text in filters.get("until", ())]
    since = [created_at(resolve(name)) for name in filters.get("since", ())]
    chosen = [
        image
        for image in images
        if (dangling is None or dangling == (not image.repo_tags and not image.repo_digests))
        and all(created_at(image) < limit for limit in before)
        and all(created_at(image) > limit for limit in since)
        and _has_labels(image, filters)
    ]
    return sorted(chosen, key=created_at, reverse=True)


def shown_names(image: Image, filters: Filters) -> tuple[list[str], list[str]] | None:
    """The tags and digests to show for an image; None when a `reference` filter rules it out."""
    patterns = filters.get("reference", ())
    if not patterns:
        return list(image.repo_tags), list(image.repo_digests)
    tags = [name for name in image.repo_tags if _matches(name, patterns)]
    digests = [name for name in image.repo_digests if _matches(name, patterns)]
    return (tags, digests) if tags or digests else None


def summary(
    image: Image, tags: Sequence[str], digests: Sequence[str], *, containers: int, shared_size: int
) -> dict[str, Any]:
    """One entry of `GET /images/json`."""
    return {
        "Containers": containers,
        "Created": int(created_at(image)),
        "Id": image.id,
        "Labels": _config(image).get("Labels"),
        "ParentId": "",
        "RepoDigests": list(digests),
        "RepoTags": list(tags),
        "SharedSize": shared_size,
        "Size": image.size,
    }


def shared_sizes(images: Sequence[Image]) -> dict[str, int]:
    """For each image the bytes of its layers that another image has too."""
    users: dict[str, int] = {}
    for image in images:
        for chain in chain_ids([layer.diff_id for layer in image.layers]):
            users[chain] = users.get(chain, 0) + 1
    return {
        image.id: sum(
            size
            for chain, size in zip(
                chain_ids([layer.diff_id for layer in image.layers]), image.layer_sizes, strict=False
            )
            if users[chain] > 1
        )
        for image in images
    }


def details(image: Image, version: tuple[int, int]) -> dict[str, Any]:
    """`GET /images/{name}/json` for an API version."""
    config = image.config
    answer: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Parent": "",
        "Comment": config.get("comment") or _last_comment(config),
        "Created": image.created or (_ZERO_TIME if version < (1, 44) else ""),
        "DockerVersion": config.get("docker_version") or "",
        "Author": config.get("author") or "",
        "Config": _shown_config(_config(image), version),
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Data": None, "Name": SNAPSHOTTER},
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]},
        "Metadata": {"LastTagTime": _stamp(image.tagged_at) if image.tagged_at else _ZERO_TIME},
    }
    if config.get("variant"):
        answer["Variant"] = config["variant"]
    if config.get("os.version"):
        answer["OsVersion"] = config["os.version"]
    if version >= (1, 44) and not answer["Created"]:
        del answer["Created"]
    if version < (1, 44):
        answer["VirtualSize"] = image.size
    if version < (1, 45):
        answer["Container"] = config.get("container") or ""
        answer["ContainerConfig"] = _shown_config(config.get("container_config") or {}, version)
    return answer


def history(image: Image) -> list[dict[str, Any]]:
    """`GET /images/{name}/history`: newest first, sizes for the steps that made a layer."""
    sizes = iter(image.layer_sizes)
    steps = []
    for step in image.config.get("history") or []:
        size = 0 if step.get("empty_layer") else next(sizes, 0)
        steps.append(
            {
                "Comment": step.get("comment") or "",
                "Created": int(_moment(step.get("created") or "") or 0),
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


def _config(image: Image) -> Mapping[str, Any]:
    return image.config.get("config") or {}


def _shown_config(config: Mapping[str, Any], version: tuple[int, int]) -> dict[str, Any]:
    """The config with the keys that Docker always shows; from 1.50 on without those of a container."""
    always: dict[str, Any] = {
        "User": "",
        "Env": None,
        "Cmd": None,
        "Volumes": None,
        "WorkingDir": "",
        "Entrypoint": None,
        "OnBuild": None,
        "Labels": None,
    }
    if version < (1, 50):
        always |= {
            "Hostname": "",
            "Domainname": "",
            "AttachStdin": False,
            "AttachStdout": False,
            "AttachStderr": False,
            "Tty": False,
            "OpenStdin": False,
            "StdinOnce": False,
            "Image": "",
        }
    return always | {key: value for key, value in config.items() if value is not None}


def _last_comment(config: Mapping[str, Any]) -> str:
    steps = config.get("history") or []
    return (steps[-1].get("comment") or "") if steps else ""


def _boolean(filters: Filters, key: str) -> bool | None:
    values = filters.get(key, ())
    if not values:
        return None
    if all(value in _TRUE for value in values):
        return True
    if all(value in _FALSE for value in values):
        return False
    raise errdefs.InvalidArgument(f"invalid filter '{key}=[{' '.join(values)}]'")


def _has_labels(image: Image, filters: Filters) -> bool:
    labels = _config(image).get("Labels") or {}
    return all(_has_label(labels, text) for text in filters.get("label", ())) and not any(
        _has_label(labels, text) for text in filters.get("label!", ())
    )


def _has_label(labels: Mapping[str, str], text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches the familiar name, with or without tag or digest. `*` stops at a slash."""
    parsed = reference.parse(name)
    return any(
        _glob(pattern).fullmatch(candidate)
        for pattern in patterns
        for candidate in (parsed.familiar, parsed.familiar_name)
    )


def _glob(pattern: str) -> re.Pattern[str]:
    """Go's path.Match as a regular expression. Raises InvalidArgument for an unfinished class."""
    parts, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            parts.append("[^/]*")
        elif char == "?":
            parts.append("[^/]")
        elif char == "[":
            end = pattern.find("]", at + 1)
            if end < 0:
                raise errdefs.InvalidArgument("syntax error in pattern")
            inner = pattern[at:end].replace("\\", "\\\\").replace("[", "\\[")
            parts.append(f"[{inner}]")
            at = end + 1
        elif char == "\\" and at < len(pattern):
            parts.append(re.escape(pattern[at]))
            at += 1
        else:
            parts.append(re.escape(char))
    try:
        return re.compile("".join(parts))
    except re.error as error:
        raise errdefs.InvalidArgument("syntax error in pattern") from error


def _moment(text: str) -> float | None:
    """Seconds since 1970 of an RFC 3339 time, to the microsecond."""
    trimmed = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        moment = datetime.datetime.fromisoformat(trimmed)
        return moment.timestamp() if moment.year > 1 else None
    except ValueError:
        return None


def _until(text: str) -> float:
    """Seconds since 1970 of a Unix time, an RFC 3339 time, or a Go duration before now."""
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text):
        return float(text)
    moment = _moment(text)
    if moment is not None:
        return moment
    parts = _DURATION.findall(text)
    if parts and "".join(f"{number}{unit}" for number, unit in parts) == text:
        return time.time() - sum(float(number) * _SECONDS[unit] for number, unit in parts)
    raise errdefs.InvalidArgument(f"invalid filter 'until=[{text}]'")


def _stamp(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat().replace("+00:00", "Z")
