"""Which OCI runtime a container's runtime means.

containerd's own name for it, `io.containerd.runc.v2`, is our shim, whose options say which binary it calls.
Beyond that, the name or the absolute path of an OCI runtime (`crun`, `/usr/sbin/runc`) is our shim with that
binary. Shims that others wrote are not driven: they tell what happens in their own way.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil

import errdefs
from pb.containerd.runc.v1 import Options
from pb.google.protobuf import Any as AnyMessage

OURS = "io.containerd.runc.v2"
_OPTIONS = "containerd.runc.v1.Options"
_OF_CONTAINERD = re.compile(r"io\.containerd\.(?P<name>[\w-]+)\.v(?P<version>\w+)")
_LEAD = "failed to start shim: failed to resolve runtime path"


def binary_of(runtime: str, path: str = "") -> str:
    """The binary that a container's runtime, or the path given in its place, means; empty for what the
    options name.

    Raises InvalidArgument for one that cannot be, NotImplementedHere for a shim that is not ours.
    """
    if path:
        if not os.path.isabs(path):
            raise errdefs.InvalidArgument(f"{_LEAD}: runtime_path {path} is not absolute")
        return _at(path)
    if runtime == OURS:
        return ""
    if os.path.isabs(runtime):
        return _at(runtime)
    known = _OF_CONTAINERD.fullmatch(runtime)
    if known:
        shim = f"containerd-shim-{known['name']}-v{known['version']}"
        if shutil.which(shim) is None:
            raise errdefs.InvalidArgument(
                f'{_LEAD}: runtime "{runtime}" binary not installed "{shim}": file does not exist'
            )
        raise _foreign(shim)
    found = shutil.which(runtime) if "/" not in runtime else None
    if found is None:
        raise errdefs.InvalidArgument(
            f"{_LEAD}: invalid runtime name {runtime}, correct runtime name should be either format like "
            "`io.containerd.runc.v1`, the name of an OCI runtime or a full path to the binary"
        )
    return found


def options_for(options: AnyMessage | None, *, binary: str, root: str) -> AnyMessage:
    """The shim's options: the client's, with the binary that the runtime's name means and our folder of
    states where the client has none.

    Raises InvalidArgument for options of another kind, or a binary that contradicts the name's;
    NotImplementedHere for what the shim would ignore.
    """
    wanted = Options()
    if options is not None and options.value:
        if options.type_url.rpartition("/")[2] != _OPTIONS:
            raise errdefs.InvalidArgument(f"task options of type {options.type_url!r}: invalid argument")
        wanted = Options.parse(options.value)
    if wanted.shim_cgroup:
        raise errdefs.NotImplementedHere("a cgroup for the shim is not supported: not implemented")
    if wanted.task_api_address:
        raise errdefs.NotImplementedHere("tasks inside a sandbox's shim are not supported: not implemented")
    if binary and wanted.binary_name not in ("", binary):
        raise errdefs.InvalidArgument(
            f"the runtime is {binary}, but its options name {wanted.binary_name}: invalid argument"
        )
    made = dataclasses.replace(wanted, binary_name=wanted.binary_name or binary, root=wanted.root or root)
    return AnyMessage(type_url=_OPTIONS, value=bytes(made))


def _at(path: str) -> str:
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise errdefs.InvalidArgument(f"{_LEAD}: {path} is no program that can be run")
    name = os.path.basename(path)
    if name == "shim-svc":
        return ""
    if name.startswith("containerd-shim-"):
        raise _foreign(path)
    return path


def _foreign(shim: str) -> errdefs.NotImplementedHere:
    return errdefs.NotImplementedHere(f"the shim {shim} is not ours and is not driven yet: not implemented")
