"""What one tree has changed in another: by comparing the two, or by reading the upper folder of an overlay.

Rules: OCI image-spec layer.md, "Change Types"; what counts as a difference is containerd's (fs.Changes):
kind, mode, owner, device, target, capabilities, and a file's size or time, never the time of a folder.
"""

from __future__ import annotations

import filecmp
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

_OPAQUE = "trusted.overlay.opaque"
# The folder is shown from elsewhere, or the file's data is: only the mounted tree has the truth.
_ELSEWHERE = frozenset({"trusted.overlay.redirect", "trusted.overlay.metacopy"})
_CAPABILITY = "security.capability"

_Facts = os.stat_result


class NotPlain(Exception):
    """An overlay's upper folder does not tell everything by itself."""


@dataclass(frozen=True)
class Change:
    """`path` has no leading slash. `facts` are of what is there now, None for what was deleted. An `opaque`
    folder hides what the layers below have in it.
    """

    path: str
    facts: _Facts | None
    opaque: bool = False


def of_upper(root: str) -> list[Change]:
    """All that an overlay's upper folder changes, a folder before what is in it.

    Raises NotPlain where it refers to the layers below.
    """
    found = []
    waiting = _entries(root, "")
    while waiting:
        path, facts = waiting.pop()
        if stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0:
            found.append(Change(path, None))
            continue
        keys = os.listxattr(f"{root}/{path}", follow_symlinks=False)
        if not _ELSEWHERE.isdisjoint(keys):
            raise NotPlain(path)
        found.append(Change(path, facts, opaque=_OPAQUE in keys))
        if stat.S_ISDIR(facts.st_mode):
            waiting += _entries(root, path)
    return found


def of_trees(lower: str, upper: str) -> Iterator[Change]:
    """All in which the tree `upper` differs from `lower`, a changed folder before what is in it."""
    waiting = _pairs(lower, upper, "")
    while waiting:
        path, have, facts = waiting.pop()
        if facts is None:
            yield Change(path, None)
            continue
        folders = [part for part in (have, facts) if part is not None and stat.S_ISDIR(part.st_mode)]
        if have is None or _differ(f"{lower}/{path}", have, f"{upper}/{path}", facts):
            yield Change(path, facts)
        if stat.S_ISDIR(facts.st_mode):
            waiting += _pairs(lower if len(folders) == 2 else None, upper, path)


def _pairs(lower: str | None, upper: str, folder: str) -> list[tuple[str, _Facts | None, _Facts | None]]:
    """The entries of a folder of both trees, the last name first."""
    have = dict(_entries(lower, folder)) if lower is not None else {}
    now = dict(_entries(upper, folder))
    return [(path, have.get(path), now.get(path)) for path in sorted(have.keys() | now.keys(), reverse=True)]


def _entries(root: str, folder: str) -> list[tuple[str, _Facts]]:
    """Paths below the root, and what they are, the last name first."""
    found = []
    with os.scandir(f"{root}/{folder}") as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            found.append((path, entry.stat(follow_symlinks=False)))
    return sorted(found, key=lambda one: one[0], reverse=True)


def _differ(below: str, have: _Facts, above: str, facts: _Facts) -> bool:
    plain = ("st_mode", "st_uid", "st_gid", "st_rdev")
    if any(getattr(have, name) != getattr(facts, name) for name in plain):
        return True
    if stat.S_ISLNK(facts.st_mode):
        return os.readlink(below) != os.readlink(above)
    if _capability(below) != _capability(above):
        return True
    if not stat.S_ISREG(facts.st_mode):
        return False
    if have.st_size != facts.st_size or have.st_mtime_ns != facts.st_mtime_ns:
        return True
    # A time without a fraction may have been set by an archive: then it says nothing.
    return facts.st_mtime_ns % 10**9 == 0 and not filecmp.cmp(below, above, shallow=False)


def _capability(path: str) -> bytes:
    try:
        return os.getxattr(path, _CAPABILITY, follow_symlinks=False)
    except OSError:  # none, or a file system without
        return b""
