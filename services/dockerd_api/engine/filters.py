"""The filters of GET /containers/json (moby daemon/list.go)."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

import errdefs

from dockerd_api.engine import ports
from dockerd_api.engine.model import Container
from dockerd_api.engine.store import Store

_KNOWN = frozenset(
    [
        "ancestor",
        "before",
        "exited",
        "id",
        "isolation",
        "label",
        "name",
        "status",
        "health",
        "since",
        "volume",
        "network",
        "is-task",
        "publish",
        "expose",
    ]
)
_STATES = ("paused", "restarting", "removing", "running", "dead", "created", "exited")
_HEALTH = ("starting", "healthy", "unhealthy", "none")

Resolve = Callable[[str], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Query:
    """What a client lists. `limit` 0 means all that match."""

    filters: Mapping[str, list[str]]
    everything: bool = False
    limit: int = 0


def parse(text: str) -> dict[str, list[str]]:
    """The filters from the query; both of the API's forms ({"a": ["b"]} and {"a": {"b": true}})."""
    if not text:
        return {}
    try:
        document = json.loads(text)
    except ValueError:
        raise errdefs.InvalidArgument("invalid filter") from None
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument("invalid filter")
    found: dict[str, list[str]] = {}
    for key, values in document.items():
        if isinstance(values, dict):
            values = [value for value, wanted in values.items() if wanted]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise errdefs.InvalidArgument("invalid filter")
        if key not in _KNOWN:
            raise errdefs.InvalidArgument(f"invalid filter '{key}'")
        found[key] = values
    return found


async def select(store: Store, query: Query, image_id: Resolve) -> list[Container]:
    """The containers that match, the newest first. `image_id` finds the id behind an `ancestor`."""
    filters = query.filters
    _check(filters)
    images = {await image_id(ref) for ref in filters.get("ancestor", ())}
    before = [store.resolve(ref).created for ref in filters.get("before", ())]
    since = [store.resolve(ref).created for ref in filters.get("since", ())]
    everything = (
        query.everything or query.limit > 0 or bool({"status", "exited", "before", "since"} & set(filters))
    )
    found: list[Container] = []
    for record in sorted(store.all(), key=lambda record: record.created, reverse=True):
        if not everything and not record.state.running:
            continue
        if (
            "ancestor" in filters
            and record.image_id not in images
            and record.image_ref not in filters["ancestor"]
        ):
            continue
        if any(record.created >= moment for moment in before) or any(
            record.created <= moment for moment in since
        ):
            continue
        if not _matches(record, filters):
            continue
        found.append(record)
        if query.limit > 0 and len(found) == query.limit:
            break
    return found


def _check(filters: Mapping[str, list[str]]) -> None:
    for value in filters.get("exited", ()):
        if not re.fullmatch(r"[+-]?[0-9]+", value):
            raise errdefs.InvalidArgument(
                f"invalid filter 'exited={value}': strconv.Atoi: parsing \"{value}\": invalid syntax"
            )
    for value in filters.get("status", ()):
        if value not in _STATES:
            raise errdefs.InvalidArgument(
                f"invalid filter 'status={value}': invalid value for state ({value}): must be one of "
                + ", ".join(_STATES)
            )
    for value in filters.get("health", ()):
        if value not in _HEALTH:
            raise errdefs.InvalidArgument(f"unrecognized filter value for health: {value}")
    for key in ("publish", "expose"):
        for value in filters.get(key, ()):
            if ":" in value:
                raise errdefs.InvalidArgument(f"filter for '{key}' should not contain ':': {value}")
            _ports((value,))


def _matches(record: Container, filters: Mapping[str, list[str]]) -> bool:
    state = record.state
    config = record.config
    checks: tuple[tuple[str, Callable[[list[str]], bool]], ...] = (
        ("id", lambda values: any(record.id.startswith(value) for value in values)),
        ("name", lambda values: any(_name_matches(record.name, value) for value in values)),
        (
            "exited",
            lambda values: (
                not state.running
                and not state.started_at.startswith("0001")
                and state.exit_code in map(int, values)
            ),
        ),
        ("status", lambda values: state.status in values),
        ("health", lambda values: "none" in values),
        ("label", lambda values: all(_label_matches(record.labels, value) for value in values)),
        ("isolation", lambda values: record.host_config["Isolation"] in values),
        ("network", lambda values: any(_in_network(record, value) for value in values)),
        (
            "volume",
            lambda values: any(
                value in (m["Destination"], m["Source"]) for m in record.mounts for value in values
            ),
        ),
        ("is-task", lambda values: "true" not in values),
        ("expose", lambda values: bool(_ports(values) & set(config.get("ExposedPorts") or ()))),
        (
            "publish",
            lambda values: bool(
                _ports(values)
                & {
                    f"{port['host_port']}/{port['protocol']}"
                    for port in record.network_settings.get("ports") or ()
                }
            ),
        ),
    )
    return all(check(filters[key]) for key, check in checks if filters.get(key))


def _name_matches(name: str, pattern: str) -> bool:
    try:
        return re.search(pattern, name) is not None or re.search(pattern, f"/{name}") is not None
    except re.error:
        return pattern in name


def _label_matches(labels: Mapping[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _in_network(record: Container, wanted: str) -> bool:
    if record.host_config["NetworkMode"] == wanted:
        return True
    return any(
        wanted == endpoint["network_name"] or (wanted and endpoint["network_id"].startswith(wanted))
        for endpoint in record.network_settings.get("endpoints") or ()
    )


def _ports(values: Iterable[str]) -> set[str]:
    return set(ports.exposed(values))


def parse_prune(text: str) -> dict[str, list[str]]:
    """The filters of POST /containers/prune: `until` and `label`, `label!`."""
    if not text:
        return {}
    found: dict[str, list[str]] = {}
    try:
        document = json.loads(text)
        for key, values in document.items():
            if key not in ("until", "label", "label!"):
                raise errdefs.InvalidArgument(f"invalid filter '{key}'")
            found[key] = [str(value) for value in values]
    except (ValueError, AttributeError, TypeError):
        raise errdefs.InvalidArgument("invalid filter") from None
    if "until" in found:
        raise errdefs.NotImplementedHere("the filter until is not implemented for prune")
    return found


def prunable(record: Container, wanted: Mapping[str, list[str]]) -> bool:
    """Is it stopped, and does it match the labels?"""
    return (
        not record.state.running
        and record.state.status in ("created", "exited")
        and all(_label_matches(record.labels, value) for value in wanted.get("label", ()))
        and not any(_label_matches(record.labels, value) for value in wanted.get("label!", ()))
    )
