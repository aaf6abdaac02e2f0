"""Which shim and which OCI runtime a container's runtime means.

containerd's own name for it, `io.containerd.runc.v2`, is our shim, whose options say which binary it calls.
Beyond that, the name or the absolute path of an OCI runtime (`crun`, `/usr/sbin/runc`) is our shim with that
binary. Any other name with dots (`io.containerd.kata.v2`) and the path of a `containerd-shim-*` is a shim
that others wrote, found as containerd finds it (its core/runtime/v2/shim_manager.go); the configuration may
give a name another shim.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import errdefs
from pb.containerd.runc.v1 import Options
from pb.google.protobuf import Any as AnyMessage

OURS = "io.containerd.runc.v2"
_OPTIONS = "containerd.runc.v1.Options"
_DOTTED = re.compile(r"(?:[\w-]+\.)*(?P<name>[\w-]+)\.(?P<version>[\w-]+)")
_LEAD = "failed to start shim: failed to resolve runtime path"
_SHIM = "containerd-shim-"


@dataclass(frozen=True)
class Runtime:
    """binary: the OCI runtime that our shim calls, empty for what the options name; shim: the path of another
    shim, empty for ours.
    """

    binary: str = ""
    shim: str = ""


def resolve(runtime: str, path: str = "", *, shims: Mapping[str, str]) -> Runtime:
    """What a container's runtime, or the path given in its place, means. shims: those that the configuration
    gives to names.

    Raises InvalidArgument for one that cannot be.
    """
    if path:
        if not os.path.isabs(path):
            raise errdefs.InvalidArgument(f"{_LEAD}: runtime_path {path} is not absolute")
        return _at(path)
    if runtime in shims:
        return Runtime(shim=_program(shims[runtime]))
    if runtime == OURS:
        return Runtime()
    if os.path.isabs(runtime):
        return _at(runtime)
    dotted = _DOTTED.fullmatch(runtime)
    if dotted:
        shim = f"{_SHIM}{dotted['name']}-{dotted['version']}"
        found = shutil.which(shim)
        if found is None:
            raise errdefs.InvalidArgument(
                f'{_LEAD}: runtime "{runtime}" binary not installed "{shim}": file does not exist'
            )
        return Runtime(shim=found)
    found = shutil.which(runtime) if "/" not in runtime else None
    if found is None:
        raise errdefs.InvalidArgument(
            f"{_LEAD}: invalid runtime name {runtime}, correct runtime name should be either format like "
            "`io.containerd.runc.v1`, the name of an OCI runtime or a full path to the binary"
        )
    return Runtime(binary=found)


def options_for(options: AnyMessage | None, runtime: Runtime, *, root: str) -> AnyMessage | None:
    """The shim's options: the client's, with the binary that the runtime's name means and our folder of
    states where the client has none. Another shim gets the client's, which may be of any kind.

    Raises InvalidArgument for options of another kind, or a binary that contradicts the name's;
    NotImplementedHere for what our shim would ignore.
    """
    given = options if options is not None and options.value else None
    kind = given.type_url.rpartition("/")[2] if given is not None else ""
    if runtime.shim and kind != _OPTIONS:
        return _filled(Options(), runtime, root) if not kind and _drives_runc(runtime.shim) else given
    if kind not in ("", _OPTIONS):
        raise errdefs.InvalidArgument(f"task options of type {kind!r}: invalid argument")
    wanted = Options.parse(given.value) if given is not None else Options()
    if runtime.shim:
        return _filled(wanted, runtime, root)
    if wanted.shim_cgroup:
        raise errdefs.NotImplementedHere("a cgroup for the shim is not supported: not implemented")
    if wanted.task_api_address:
        raise errdefs.NotImplementedHere("tasks inside a sandbox's shim are not supported: not implemented")
    if runtime.binary and wanted.binary_name not in ("", runtime.binary):
        raise errdefs.InvalidArgument(
            f"the runtime is {runtime.binary}, but its options name {wanted.binary_name}: invalid argument"
        )
    return _filled(wanted, runtime, root)


def _filled(wanted: Options, runtime: Runtime, root: str) -> AnyMessage:
    made = dataclasses.replace(
        wanted, binary_name=wanted.binary_name or runtime.binary, root=wanted.root or root
    )
    return AnyMessage(type_url=_OPTIONS, value=bytes(made))


def _drives_runc(shim: str) -> bool:
    """Whether a shim is containerd's for runc, whose states are to lie in our folder without options too:
    those of other engines have the same names.
    """
    return os.path.basename(shim).startswith(f"{_SHIM}runc-")


def _at(path: str) -> Runtime:
    name = os.path.basename(_program(path))
    if name == "shim-svc":
        return Runtime()
    return Runtime(shim=path) if name.startswith(_SHIM) else Runtime(binary=path)


def _program(path: str) -> str:
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise errdefs.InvalidArgument(f"{_LEAD}: {path} is no program that can be run")
    return path
