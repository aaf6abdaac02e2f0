"""Where else than in the container's own cgroup a further process may be put: in a cgroup below it that is
there, or where the container's first process is now. Loaded only when one of the two is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from errdefs import FailedPrecondition, InvalidArgument, NotFound

from . import hierarchy
from .manager import Manager


def parse(words: Sequence[str]) -> dict[str, str]:
    """The paths below the container's cgroup, by controller, of `exec --cgroup`: `path` for all hierarchies
    ("" is its key), or any number of `controller[,controller...]:path`. InvalidArgument.
    """
    paths: dict[str, str] = {}
    for word in words:
        controllers, colon, path = word.partition(":")
        if not colon:
            if len(words) > 1:
                raise InvalidArgument(f"invalid --cgroup argument: {word} (missing <controller>: prefix)")
            return {"": word}
        for controller in controllers.split(","):
            if not controller:
                raise InvalidArgument(f"invalid --cgroup argument: {word} (empty <controller> prefix)")
            if controller in paths:
                raise InvalidArgument(
                    f"invalid --cgroup argument(s): controller {controller} specified multiple times"
                )
            paths[controller] = path
    return paths


def below(manager: Manager, wanted: Mapping[str, str]) -> Manager:
    """The manager of cgroups below a container's, which are there; `wanted` is what `parse` gave.

    InvalidArgument for a controller that the container has no cgroup of, and for a way out of it; NotFound;
    FailedPrecondition for a container without cgroups.
    """
    if not manager.paths:
        raise FailedPrecondition("cgroups not configured for container")
    paths = dict(manager.paths)
    for controller, path in wanted.items():
        if controller and controller not in paths:
            raise InvalidArgument(f"unknown controller {controller} in --cgroup")
        for name in (controller,) if controller else manager.paths:
            base = manager.paths[name]
            paths[name] = os.path.normpath(f"{base}/{path}")
            if paths[name] != base and not paths[name].startswith(base + "/"):
                raise InvalidArgument(f"{path} is not a sub cgroup path")
            if not os.path.isdir(paths[name]):
                raise NotFound(f"no such cgroup: {paths[name]}")
    if not manager.attaches:
        return Manager.from_paths(paths)
    made = Manager.from_paths(paths, manager.unit, user=manager.user)
    made.sub_group = os.path.normpath(f"/{wanted.get('', '')}")
    return made


def of_process(pid: int) -> Manager:
    """The cgroup of the v2 tree that a process is in, which need not be where it was put."""
    return Manager.from_paths({"": os.path.normpath(f"{hierarchy.MOUNT}/{hierarchy.cgroups_of(pid)['']}")})
