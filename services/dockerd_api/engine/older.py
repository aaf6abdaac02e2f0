"""What a client of an older API version means by a request to create a container.

Fields that its version does not know are taken as absent, and defaults are those of its time (moby
container_routes.go, postContainersCreate).
"""

from __future__ import annotations

from typing import Any

import errdefs

Version = tuple[int, int]
_UNKNOWN_BIND_OPTIONS = (((1, 40), "NonRecursive"), ((1, 42), "CreateMountpoint"))
_OWNERS = (("VolumeOptions", "volume"), ("TmpfsOptions", "tmpfs"))


def adapt(host_config: dict[str, Any], version: Version) -> None:
    """Changes a decoded HostConfig in place; InvalidArgument for what must not be dropped without a word."""
    if version < (1, 40):
        host_config["IpcMode"] = host_config["IpcMode"] or "shareable"
    if version < (1, 42):
        host_config["ConsoleSize"] = [0, 0]
    if version < (1, 43):
        host_config["Annotations"] = None
    if version < (1, 44):
        host_config["Mounts"] = [_mount(mount, version) for mount in host_config["Mounts"] or ()] or None


def _mount(document: dict[str, Any], version: Version) -> dict[str, Any]:
    names = {key.lower(): key for key in document}
    adapted = dict(document)
    kind = document.get(names.get("type", ""), "")
    if version < (1, 42):
        for option, owner in _OWNERS:
            if kind != owner:
                adapted.pop(names.get(option.lower(), ""), None)
    if kind != "bind":
        return adapted
    key = names.get("bindoptions", "BindOptions")
    given = document.get(key)
    if given is not None and not isinstance(given, dict):
        return adapted  # refused where mounts are decoded
    bind = {name.lower(): value for name, value in (given or {}).items()}
    if bind.get("readonlyforcerecursive"):
        raise errdefs.InvalidArgument("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
    for since, option in _UNKNOWN_BIND_OPTIONS:
        if version < since:
            bind.pop(option.lower(), None)
    # Until then, a read-only mount left those below it as they are.
    bind["readonlynonrecursive"] = True
    adapted[key] = bind
    return adapted
