"""Platforms of images: how they are written, which one suits which, and this machine's own.

The rules are those of github.com/containerd/platforms: names have a normal form, a machine also runs what its
older variants run, and a platform that was asked for is matched exactly.
"""

from __future__ import annotations

import json
import platform as machine
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import errdefs

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
_MACHINES |= {"ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64", "loongarch64": "loong64"}
_VARIANTS = {"armv7l": "v7", "armv6l": "v6"}
_SYSTEMS = ("linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "plan9", "aix", "wasip1")
_ARCHITECTURES = {*_MACHINES.values(), "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc", "wasm"}
_PART = re.compile(r"[A-Za-z0-9_.-]+")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Platform:
    """An OCI platform (image-spec image-index.md, property `platform`); empty: not said."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`linux/arm/v7`."""
        if not self.os:
            return UNKNOWN
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def document(self) -> dict[str, Any]:
        """As the API and image indexes show it."""
        found: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            found["os.version"] = self.os_version
        if self.os_features:
            found["os.features"] = list(self.os_features)
        if self.variant:
            found["variant"] = self.variant
        return found

    def normal(self) -> Platform:
        """With the one name that each thing has: `x86_64` is amd64, arm64's `v8` goes without saying."""
        system = {"macos": "darwin"}.get(self.os.lower(), self.os.lower())
        architecture, variant = _normal(self.architecture.lower(), self.variant.lower())
        return Platform(system, architecture, variant, self.os_version, self.os_features)

    def is_unknown(self) -> bool:
        """Whether it is `unknown/unknown`, as the manifests are marked that are no images."""
        return self.os == UNKNOWN and self.architecture == UNKNOWN


def from_document(document: Mapping[str, Any]) -> Platform:
    """The platform that an index's entry or an image's config says. Raises InvalidArgument."""
    os, architecture, variant, os_version = (
        document.get(key) or "" for key in ("os", "architecture", "variant", "os.version")
    )
    features = document.get("os.features") or []
    if not all(isinstance(part, str) for part in (os, architecture, variant, os_version, *features)):
        raise errdefs.InvalidArgument("invalid platform: not made of strings")
    return Platform(os, architecture, variant, os_version, tuple(features))


def parse(text: str) -> Platform:
    """`os`, `arch`, `os/arch` or `os/arch/variant`, in normal form. Raises InvalidArgument."""
    parts = text.split("/")
    for part in parts:
        if not _PART.fullmatch(part):
            raise errdefs.InvalidArgument(
                f'"{part}" is an invalid component of "{text}": platform specifier component must match '
                f'"^[A-Za-z0-9_.-]+$": invalid argument'
            )
    if len(parts) == 1:
        word = parts[0].lower()
        if word in (*_SYSTEMS, "macos"):
            own = host()
            return Platform(word, own.architecture, own.variant).normal()
        guessed = Platform(host().os, word).normal()
        if guessed.architecture in _ARCHITECTURES:
            return guessed
        raise errdefs.InvalidArgument(f'"{text}": unknown operating system or architecture: invalid argument')
    if len(parts) > 3:
        raise errdefs.InvalidArgument(f'"{text}": cannot parse platform specifier: invalid argument')
    return Platform(parts[0], parts[1], parts[2] if len(parts) == 3 else "").normal()


def decode(text: str) -> Platform:
    """The JSON form of an API parameter. Raises InvalidArgument with Docker's words."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise errdefs.InvalidArgument(f"failed to parse platform: {error}") from error
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument("failed to parse platform: not an object")
    found = from_document(document)
    if not found.os and not found.architecture and (found.variant or found.os_version or found.os_features):
        raise errdefs.InvalidArgument(
            "optional platform fields provided, but OS and Architecture are missing"
        )
    if not found.os or not found.architecture:
        raise errdefs.InvalidArgument("both OS and Architecture must be provided")
    return found


@cache
def host() -> Platform:
    """This machine's."""
    name = machine.machine()
    return Platform("linux", _MACHINES.get(name, name), _VARIANTS.get(name, "")).normal()


class Choice:
    """Which platforms will do, and which is best."""

    def __init__(self, wanted: Platform | None = None) -> None:
        """With `wanted`, that one alone; without, the one of this machine, then what it can run besides, then
        any.
        """
        self.wanted = wanted
        self._order = [wanted.normal()] if wanted else runnable(host())

    def rank(self, platform: Platform) -> int | None:
        """The smaller, the better; None when it will not do."""
        normal = platform.normal()
        for number, candidate in enumerate(self._order):
            if _same(candidate, normal):
                return number
        return None if self.wanted else len(self._order)

    def is_best(self, rank: int) -> bool:
        """Whether nothing can be better."""
        return rank == 0


def runs_here(platform: Platform) -> bool:
    """Whether this machine is known to run it without emulation."""
    normal = platform.normal()
    return any(_same(candidate, normal) for candidate in runnable(host()))


def runnable(own: Platform) -> Sequence[Platform]:
    """The platform and those that its machines run besides, best first."""
    found = [own]
    if own.architecture == "amd64":
        found.append(Platform(own.os, "386"))
    elif own.architecture == "arm64":
        found += [Platform(own.os, "arm", f"v{number}") for number in (8, 7, 6, 5)]
    elif own.architecture == "arm" and own.variant[1:].isdigit():
        found += [Platform(own.os, "arm", f"v{number}") for number in range(int(own.variant[1:]) - 1, 4, -1)]
    return found


def _same(one: Platform, other: Platform) -> bool:
    return (one.os, one.architecture, one.variant) == (other.os, other.architecture, other.variant)


def _normal(architecture: str, variant: str) -> tuple[str, str]:
    if architecture == "i386":
        return "386", ""
    if architecture in ("x86_64", "x86-64", "amd64"):
        return "amd64", "" if variant == "v1" else variant
    if architecture in ("aarch64", "arm64"):
        return "arm64", "" if variant in ("8", "v8") else variant
    if architecture == "armhf":
        return "arm", "v7"
    if architecture == "armel":
        return "arm", "v6"
    if architecture == "arm":
        return "arm", {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
    return architecture, variant
