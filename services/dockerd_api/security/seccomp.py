"""The `linux.seccomp` object of a container: from the default profile, or from one that the user gives.

Pure functions: what they need of the host (architecture, kernel version) comes in as arguments.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from errdefs import InvalidArgument

from .seccomp_rules import ARCHITECTURES, MACHINES, RULES, Rule

UNCONFINED = "unconfined"
BUILTIN = "builtin"
_EPERM = 1

# Go's architecture name as filters in profiles write it (libseccomp's words, but for amd64)
_FILTER_NAMES = {
    "386": "x86",
    "loong64": "loongarch64",
    "mips64p32": "mips64n32",
    "mips64le": "mipsel64",
    "mips64p32le": "mips3l64n32",
    "mipsle": "mipsel",
}
_OCI_NAMES = {name: tokens[0] for name, tokens in ARCHITECTURES.items()} | {
    "386": "SCMP_ARCH_X86",
    "arm": "SCMP_ARCH_ARM",
    "mipsle": "SCMP_ARCH_MIPSEL",
    "ppc": "SCMP_ARCH_PPC",
    "ppc64": "SCMP_ARCH_PPC64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390": "SCMP_ARCH_S390",
}


def host_kernel() -> tuple[int, int]:
    """Version and major revision of the running kernel, (6, 1) for `6.1.0-25-amd64`."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def host_arch() -> str:
    """The host's architecture by Go's name, as `docker version` shows it."""
    machine = os.uname().machine
    return MACHINES.get(machine, machine)


def seccomp_profile(capabilities: Collection[str], arch: str, kernel: tuple[int, int]) -> dict[str, Any]:
    """The default profile for a container whose bounding set is `capabilities` (names with CAP_).

    `arch`: Go's or uname's name of the host's architecture; `kernel`: its version.
    """
    name = MACHINES.get(arch, arch)
    word = _FILTER_NAMES.get(name, name)
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": _EPERM}
    if name in ARCHITECTURES:
        profile["architectures"] = list(ARCHITECTURES[name])
    profile["syscalls"] = [_oci_rule(rule) for rule in RULES if _applies(rule, capabilities, word, kernel)]
    return profile


def _applies(rule: Rule, capabilities: Collection[str], arch: str, kernel: tuple[int, int]) -> bool:
    return (
        (not rule.capability or rule.capability in capabilities)
        and (not rule.without or rule.without not in capabilities)
        and (not rule.arches or arch in rule.arches)
        and arch not in rule.not_arches
        and kernel >= rule.kernel
    )


def _oci_rule(rule: Rule) -> dict[str, Any]:
    call: dict[str, Any] = {"names": list(rule.calls), "action": "SCMP_ACT_ALLOW"}
    if rule.errno:
        call.update(action="SCMP_ACT_ERRNO", errnoRet=rule.errno)
    if rule.tests:
        call["args"] = [
            {"index": test.index, "value": test.value, "valueTwo": test.masked, "op": test.op}
            for test in rule.tests
        ]
    return call


def container_seccomp(
    profile: str,
    *,
    capabilities: Collection[str],
    privileged: bool = False,
    arch: str | None = None,
    kernel: tuple[int, int] | None = None,
    daemon_profile: str = "",
) -> dict[str, Any] | None:
    """`linux.seccomp` for what a container's `--security-opt seccomp=…` says; None for no filter.

    `profile`: "" (the daemon's choice), `builtin`, `unconfined`, or a profile's JSON text, which is what the
    docker CLI sends for a file. A privileged container has a filter only when it asks for one.
    `daemon_profile` is the daemon's own choice in the same words. InvalidArgument for text that is no
    profile.
    """
    if profile == UNCONFINED or (privileged and not profile):
        return None
    chosen = profile or daemon_profile
    if chosen == UNCONFINED:
        return None
    arch = arch or host_arch()
    kernel = kernel or host_kernel()
    # moby reads `builtin` as JSON, and so fails, when the container is privileged; nobody can want that
    if chosen in ("", BUILTIN):
        return seccomp_profile(capabilities, arch, kernel)
    return user_profile(chosen, capabilities, arch, kernel)


def user_profile(
    text: str, capabilities: Collection[str], arch: str, kernel: tuple[int, int]
) -> dict[str, Any] | None:
    """A profile in Docker's JSON form (OCI's, with conditions on the rules) resolved for one container.

    None when it is empty, which switches seccomp off. InvalidArgument says what is wrong with it.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"Decoding seccomp profile failed: {error}") from error
    if not isinstance(given, dict):
        raise InvalidArgument("Decoding seccomp profile failed: not a JSON object")
    calls = _objects(given, "syscalls")
    if not given.get("defaultAction") and not calls:
        return None
    if given.get("architectures") and given.get("archMap"):
        raise InvalidArgument(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, "
            "use either 'architectures' or 'archMap'"
        )
    name = MACHINES.get(arch, arch)
    kept = ("defaultAction", "defaultErrnoRet", "architectures", "flags", "listenerPath", "listenerMetadata")
    profile = {key: given[key] for key in kept if given.get(key) is not None}
    for entry in _objects(given, "archMap"):
        if entry.get("architecture") == _OCI_NAMES.get(name):
            profile["architectures"] = [entry["architecture"], *(entry.get("subArchitectures") or ())]
            break
    word = _FILTER_NAMES.get(name, name)
    profile["syscalls"] = [_user_rule(call) for call in calls if _wanted(call, capabilities, word, kernel)]
    return profile


def _objects(group: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = group.get(key) or []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InvalidArgument(f"Decoding seccomp profile failed: {key} must be a list of objects")
    return value


def _user_rule(call: Mapping[str, Any]) -> dict[str, Any]:
    if call.get("name") and call.get("names"):
        raise InvalidArgument(
            "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
        )
    rule = {key: call[key] for key in ("action", "errnoRet", "args") if call.get(key) is not None}
    return {"names": [call["name"]] if call.get("name") else list(call.get("names") or ())} | rule


def _wanted(
    call: Mapping[str, Any], capabilities: Collection[str], arch: str, kernel: tuple[int, int]
) -> bool:
    excludes, includes = call.get("excludes") or {}, call.get("includes") or {}
    if not isinstance(excludes, dict) or not isinstance(includes, dict):
        raise InvalidArgument("Decoding seccomp profile failed: includes and excludes must be objects")
    excluded = (
        arch in (excludes.get("arches") or ())
        or any(capability in capabilities for capability in excludes.get("caps") or ())
        or (bool(excludes.get("minKernel")) and kernel >= _version(excludes["minKernel"]))
    )
    included = (
        (not includes.get("arches") or arch in includes["arches"])
        and all(capability in capabilities for capability in includes.get("caps") or ())
        and (not includes.get("minKernel") or kernel >= _version(includes["minKernel"]))
    )
    return included and not excluded


def _version(text: object) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", text) if isinstance(text, str) else None
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version == (0, 0):
        raise InvalidArgument(f'invalid kernel version: {text}, expected "<kernel>.<major>"')
    return version
