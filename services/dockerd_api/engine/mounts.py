"""The mounts that a client asks for: Binds, Mounts and Tmpfs, checked and brought to one form.

Forms and texts follow Docker's parser (moby volume/mounts, linux_parser). Named and anonymous volumes are
not built.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import errdefs

from dockerd_api.engine import options

_PROPAGATIONS = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
_CONSISTENCIES = ("consistent", "cached", "delegated")
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_TMPFS_FLAGS = frozenset(
    [
        "defaults",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "bind",
        "rbind",
        "unbindable",
        "runbindable",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
    ]
)
_TMPFS_KEYS = frozenset(("mode", "uid", "gid", "nr_inodes", "nr_blocks", "size", "mpol"))


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. `kind` is "bind" or "tmpfs"; `options` are those of a tmpfs, merged."""

    kind: str
    source: str
    destination: str
    mode: str = ""
    writable: bool = True
    propagation: str = ""
    recursive: bool = True
    readonly_recursive: str = "try"  # "try", "no", "force"
    options: tuple[str, ...] = ()
    # Make a missing source on the host, as Docker does for Binds.
    create_source: bool = False
    # HostConfig.Tmpfs does not appear among inspect's Mounts.
    listed: bool = True

    def document(self) -> dict[str, Any]:
        """As inspect and list show it (MountPoint)."""
        return {
            "Type": self.kind,
            "Source": self.source if self.kind == "bind" else "",
            "Destination": self.destination,
            "Mode": self.mode,
            "RW": self.writable,
            "Propagation": self.propagation,
        }


def plan(host_config: Mapping[str, Any], data_root: str = "") -> list[Mount]:
    """Every mount asked for, those nearer to the root first; InvalidArgument or NotImplementedHere.

    `data_root` is the daemon's, whose mounts no container may hold on to.
    """
    found: dict[str, Mount] = {}
    for text in host_config.get("Binds") or []:
        _add(found, _propagated(_bind(text), data_root))
    for document in options.decode_list(host_config.get("Mounts"), options.MOUNT, "HostConfig.Mounts"):
        _add(found, _propagated(_mount(document), data_root))
    for target, text in (host_config.get("Tmpfs") or {}).items():
        destination = _destination(target, "")
        _add(
            found, Mount("tmpfs", "tmpfs", destination, options=tmpfs_options(text.split(",")), listed=False)
        )
    return sorted(
        found.values(), key=lambda mount: mount.destination.count("/") if mount.destination != "/" else 0
    )


def uncovered(volumes: Iterable[str], planned: Iterable[Mount]) -> list[str]:
    """Those paths of volumes where no mount is: these would be anonymous volumes."""
    taken = {mount.destination for mount in planned}
    return sorted(path for path in volumes if posixpath.normpath(path) not in taken)


def create_sources(planned: Iterable[Mount]) -> None:
    """Makes the host folders that Binds name and that do not exist."""
    for mount in planned:
        if mount.create_source:
            try:
                os.makedirs(mount.source, 0o755, exist_ok=True)
            except FileExistsError:
                pass  # a file or a socket
            except OSError as error:
                raise errdefs.InvalidArgument(
                    f"error while creating mount source path '{mount.source}': "
                    f"mkdir {mount.source}: {os.strerror(error.errno or 0).lower()}"
                ) from error


def tmpfs_options(asked: Iterable[str]) -> tuple[str, ...]:
    """Docker's defaults for a tmpfs with the asked options over them; a later one wins over its opposite."""
    merged: dict[str, str] = {}
    for option in ("noexec", "nosuid", "nodev", "rprivate", *asked):
        if not option:
            continue
        key, equals, _ = option.partition("=")
        if key not in (_TMPFS_KEYS if equals else _TMPFS_FLAGS):
            raise errdefs.InvalidArgument(f'invalid tmpfs option "{key}"')
        group = key if equals else key.removeprefix("no")
        if key in _PROPAGATIONS:
            group = "propagation"
        elif key in ("ro", "rw"):
            group = "ro"
        merged.pop(group, None)
        merged[group] = option
    return tuple(merged.values())


def _add(found: dict[str, Mount], mount: Mount) -> None:
    if mount.destination in found:
        raise errdefs.InvalidArgument(f"Duplicate mount point: {mount.destination}")
    found[mount.destination] = mount


def _propagated(mount: Mount, data_root: str) -> Mount:
    """The mount with its default propagation. What holds the daemon's folder must let go of mounts in it that
    go: else a container's removal would find its root busy (moby daemon/volumes_linux.go).
    """
    if mount.kind != "bind":
        return mount
    source = mount.source
    if not data_root or not (source.startswith(data_root) or data_root.startswith(source)):
        return dataclasses.replace(mount, propagation=mount.propagation or "rprivate")
    if mount.propagation not in ("", "rslave", "rshared"):
        raise errdefs.InvalidArgument(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount '
            f'source is within the daemon root, daemon root: "{data_root}", bind mount source: "{source}", '
            f'propagation: "{mount.propagation}"'
        )
    return dataclasses.replace(mount, propagation=mount.propagation or "rslave")


def _bind(text: str) -> Mount:
    parts = text.split(":")
    if not text or len(parts) > 3 or not all(parts[:2]):
        raise errdefs.InvalidArgument(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        raise errdefs.NotImplementedHere(f"anonymous volumes are not implemented: '{text}'")
    source, target = parts[:2]
    mode = parts[2] if len(parts) == 3 else ""
    writable, readonly, propagation = _mode(mode)
    if not source.startswith("/"):
        if not _VOLUME_NAME.match(source):
            raise errdefs.InvalidArgument(
                f'create {source}: "{source}" includes invalid characters for a local volume name, only '
                '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, '
                "use absolute path"
            )
        raise errdefs.NotImplementedHere(f"named volumes are not implemented: '{text}'")
    destination = _destination(target, f"invalid volume specification: '{text}': " + _WRONG.format("bind"))
    return Mount(
        "bind",
        posixpath.normpath(source),
        destination,
        mode=mode,
        writable=writable,
        propagation=propagation,
        readonly_recursive=readonly,
        create_source=True,
    )


_WRONG = 'invalid mount config for type "{}": '


def _mode(text: str) -> tuple[bool, str, str]:
    """Writable, how read-only reaches mounts below, and the propagation, of a mode such as "ro,rslave"."""
    writable, readonly, propagation = True, "try", ""
    seen: set[str] = set()
    for word in text.split(",") if text else ():
        if word in ("rw", "ro", "rro"):
            group, writable = "access", word == "rw"
            readonly = "force" if word == "rro" else "try"
        elif word in ("z", "Z"):
            group = "label"  # without SELinux there is nothing to relabel, as in Docker
        elif word in _CONSISTENCIES:
            group = "consistency"
        elif word in _PROPAGATIONS:
            group, propagation = "propagation", word
        else:
            raise errdefs.InvalidArgument(f"invalid mode: {text}")
        if group in seen:
            raise errdefs.InvalidArgument(f"invalid mode: {text}")
        seen.add(group)
    return writable, readonly, propagation


def _mount(document: Mapping[str, Any]) -> Mount:
    kind, source, target = document["Type"], document["Source"], document["Target"]
    wrong = _WRONG.format(kind)
    if kind in ("volume", "image", "cluster", "npipe"):
        raise errdefs.NotImplementedHere(f"mounts of type {kind} are not implemented")
    if kind not in ("bind", "tmpfs"):
        raise errdefs.InvalidArgument(f"{wrong}mount type unknown")
    for name, owner in (
        ("BindOptions", "bind"),
        ("VolumeOptions", "volume"),
        ("ImageOptions", "image"),
        ("TmpfsOptions", "tmpfs"),
        ("ClusterOptions", "cluster"),
    ):
        if document[name] is not None and kind != owner:
            raise errdefs.InvalidArgument(f'{name} must not be specified on mount type "{kind}"')
    if not target:
        raise errdefs.InvalidArgument(f"{wrong}field Target must not be empty")
    destination = _destination(target, wrong)
    if kind == "tmpfs":
        return _tmpfs(document, destination, wrong)
    if not source:
        raise errdefs.InvalidArgument(f"{wrong}field Source must not be empty")
    if not source.startswith("/"):
        raise errdefs.InvalidArgument(f"{wrong}invalid mount path: '{source}' mount path must be absolute")
    bind = options.decode(
        document["BindOptions"] or {}, options.BIND_OPTIONS, "HostConfig.Mounts.BindOptions"
    )
    if bind["Propagation"] and bind["Propagation"] not in _PROPAGATIONS:
        raise errdefs.InvalidArgument(f"{wrong}invalid propagation mode: {bind['Propagation']}")
    if not os.path.lexists(source) and not bind["CreateMountpoint"]:
        raise errdefs.InvalidArgument(f"{wrong}bind source path does not exist: {source}")
    if bind["ReadOnlyNonRecursive"] and bind["ReadOnlyForceRecursive"]:
        raise errdefs.InvalidArgument(
            f"{wrong}ReadOnlyNonRecursive and ReadOnlyForceRecursive exclude each other"
        )
    return Mount(
        "bind",
        posixpath.normpath(source),
        destination,
        writable=not document["ReadOnly"],
        propagation=bind["Propagation"],
        recursive=not bind["NonRecursive"],
        readonly_recursive="no"
        if bind["ReadOnlyNonRecursive"]
        else "force"
        if bind["ReadOnlyForceRecursive"]
        else "try",
        create_source=bind["CreateMountpoint"],
    )


def _tmpfs(document: Mapping[str, Any], destination: str, wrong: str) -> Mount:
    if document["Source"]:
        raise errdefs.InvalidArgument(f"{wrong}field Source must not be specified")
    asked = options.decode(
        document["TmpfsOptions"] or {}, options.TMPFS_OPTIONS, "HostConfig.Mounts.TmpfsOptions"
    )
    words = [f"{key}={value}" if value else key for key, value in map(_pair, asked["Options"] or [])]
    if document["ReadOnly"]:
        words.append("ro")
    if asked["SizeBytes"] < 0:
        raise errdefs.InvalidArgument(f"{wrong}invalid size: {asked['SizeBytes']}")
    if asked["SizeBytes"]:
        words.append(f"size={asked['SizeBytes']}")
    if asked["Mode"]:
        words.append(f"mode={asked['Mode']:o}")
    return Mount(
        "tmpfs", "tmpfs", destination, writable=not document["ReadOnly"], options=tmpfs_options(words)
    )


def _pair(words: list[str]) -> tuple[str, str]:
    if len(words) not in (1, 2):
        raise errdefs.InvalidArgument("invalid option array length")
    return words[0], words[1] if len(words) == 2 else ""


def _destination(target: str, wrong: str) -> str:
    if not target.startswith("/"):
        raise errdefs.InvalidArgument(f"{wrong}invalid mount path: '{target}' mount path must be absolute")
    destination = posixpath.normpath("/" + target.lstrip("/"))
    if destination == "/":
        raise errdefs.InvalidArgument(f"{wrong}invalid specification: destination can't be '/'")
    return destination
