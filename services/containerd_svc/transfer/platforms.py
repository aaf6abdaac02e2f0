"""Platforms of images: which of several a host or a client takes (containerd's platforms package).

A CPU runs what was built for its older variants: amd64 v3 also v2 and v1, arm v7 also v6 and v5, and 64-bit
arm what was built for the 32-bit one.
"""

from __future__ import annotations

import platform as host
from collections.abc import Mapping, Sequence
from typing import Any

from pb.containerd.types import Platform

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "i386": "386",
}
# (os, architecture, variant), all normal
_Key = tuple[str, str, str]


def this_host() -> Platform:
    """What this host runs."""
    machine = host.machine()
    return Platform(os="linux", architecture=_MACHINES.get(machine, machine))


def matches(wanted: Sequence[Platform], found: Mapping[str, Any] | None) -> bool:
    """Whether a descriptor's platform is one of those wanted, or runs there; both match everything when they
    are empty."""
    if not wanted or not found:
        return True
    return any(_of(found) in _runs(each) for each in wanted)


def chosen(
    wanted: Sequence[Platform], listed: Sequence[dict[str, Any]], most: int = 0
) -> list[dict[str, Any]]:
    """Of an index's manifests those for the platforms, in the order of these; at most `most` unless it is 0.

    For each platform the best that is there; for none wanted, and for manifests that name none, all.
    """
    found: list[dict[str, Any]] = []
    if wanted:
        for each in wanted:
            for key in _runs(each):
                best = [one for one in listed if one.get("platform") and _of(one["platform"]) == key]
                found += [one for one in best if one not in found]
                if best:
                    break
        found += [one for one in listed if not one.get("platform")]
    else:
        found = list(listed)
    return found[:most] if most else found


def _of(found: Mapping[str, Any]) -> _Key:
    words = (found.get(key) for key in ("os", "architecture", "variant"))
    return _normal(*(word if isinstance(word, str) else "" for word in words))


def _normal(system: str, architecture: str, variant: str) -> _Key:
    system, architecture, variant = system.lower(), architecture.lower(), variant.lower()
    if architecture == "armel" and not variant:
        variant = "v6"
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if variant.isdigit():
        variant = f"v{variant}"
    if architecture == "amd64" and variant == "v1":
        variant = ""
    if architecture == "arm64" and variant in ("v8", "v8.0"):
        variant = ""
    if architecture == "arm" and not variant:
        variant = "v7"
    return system, architecture, variant


def _runs(wanted: Platform) -> list[_Key]:
    """What runs on a platform, the best first."""
    system, architecture, variant = _normal(wanted.os, wanted.architecture, wanted.variant)
    version = int(variant[1:]) if variant[1:].isdigit() else 0
    keys = [(system, architecture, variant)]
    if architecture == "amd64" and version > 1:
        keys += [(system, "amd64", f"v{each}") for each in range(version - 1, 1, -1)]
        keys.append((system, "amd64", ""))
    if architecture == "arm":
        keys += [(system, "arm", f"v{each}") for each in range(version - 1, 4, -1)]
    if architecture == "arm64":
        keys += [(system, "arm64", "")] if variant else []
        keys += [(system, "arm", f"v{each}") for each in (8, 7, 6, 5)]
    return keys
