"""Write changes of a tree as a layer's tar: OCI image-spec layer.md, in the pax format.

What is deleted is an empty file whose name says so (layer.md, "Whiteouts"). What the tree must be is said in
storage/tree_tar.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import BinaryIO

from storage.tree_tar import TreeTar

from containerd_svc.changes import Change

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


class Packer:
    """One layer of the tree at `root`, written to `out`. `latest` is the newest time, in seconds, that an
    entry may have; None for no such limit.
    """

    def __init__(self, root: str, out: BinaryIO, *, latest: int | None = None) -> None:
        self._root = root
        self._tar = TreeTar(root, out, latest=latest)
        self._folders: set[str] = set()

    def pack(self, changes: Iterable[Change]) -> None:
        """Write them all and the end of the archive. Raises OSError, also for a file that shrinks."""
        for change in changes:
            self._parents(change.path)
            if change.facts is None:
                self._tar.empty(_beside(change.path, _WHITEOUT + os.path.basename(change.path)))
                continue
            self._entry(change.path, change.facts)
            if change.opaque:
                self._tar.empty(f"{change.path}/{_OPAQUE}")
        self._tar.end()

    def _parents(self, path: str) -> None:
        """A layer has the folders of all that is in it, so that each is unpacked as it is."""
        folder = os.path.dirname(path)
        if folder and folder not in self._folders:
            self._parents(folder)
            self._entry(folder, os.lstat(f"{self._root}/{folder}"))

    def _entry(self, path: str, facts: os.stat_result) -> None:
        self._tar.entry(path, facts)
        if stat.S_ISDIR(facts.st_mode):
            self._folders.add(path)


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name)
