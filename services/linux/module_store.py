"""All modules of a quick command in one file, so that loading them costs one read and no search.

A cold command spends most of its time on imports: a search in folders, a stat, an open and a read for each of
a hundred modules. The store holds their code (`linux.module_store_writer` makes it). A module whose source
has changed since is imported in the ordinary way, so a stale store costs time and nothing else.

This module is run from the store itself, before anything is imported: it may only use what is built in.
"""

from __future__ import annotations

import marshal
import sys
from _frozen_importlib import ModuleSpec
from posix import stat
from types import CodeType, ModuleType

# By module name: is it a package, its source's path, size and time of change in ns, where its code is.
Index = dict[str, tuple[bool, str, int, int, int, int]]


class StoredModules:
    """A finder and loader (importlib.abc) over one store."""

    def __init__(self, index: Index, code: memoryview) -> None:
        self._index = index
        self._code = code

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of a stored module whose source is unchanged, else None."""
        found = self._index.get(name)
        if found is None:
            return None
        is_package, source, size, changed, _, _ = found
        try:
            status = stat(source)
        except OSError:
            return None
        if status.st_size != size or status.st_mtime_ns != changed:
            return None
        spec = ModuleSpec(name, self, origin=source, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [source.rpartition("/")[0]]
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """None: an ordinary module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code."""
        _, _, _, _, start, end = self._index[module.__name__]
        code: CodeType = marshal.loads(self._code[start:end])
        exec(code, module.__dict__)


def install(index: Index, code: memoryview) -> None:
    """Look into the store before anywhere else."""
    sys.meta_path.insert(0, StoredModules(index, code))
