"""All modules of a quick command in one file, so that loading them costs no search.

A cold command spends most of its time on imports: a search in folders, a stat, an open and a read for each of
a hundred modules. The store holds their code (`linux.module_store_writer` makes it), where their extension
modules are, and for some words of the command line what the command will import. A module whose source has
changed since is imported in the ordinary way, so a stale store costs time and nothing else.

This module is run from the store itself, before anything is imported: it may only use what is built in.
"""

from __future__ import annotations

import marshal
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader, SourceFileLoader
from posix import O_CLOEXEC, O_RDONLY, close, fstat, open, pread, stat
from types import CodeType, ModuleType

MODULE, PACKAGE, EXTENSION = range(3)
# By module name: which of the three, its source's path, size and time of change in ns, where its code is.
Index = dict[str, tuple[int, str, int, int, int, int]]
Groups = dict[str, tuple[str, ...]]


class StoredModules:
    """A finder and loader (importlib.abc) over one store.

    `groups` are the names of modules by words of the command line. Code is read from the file `path` as long
    as that is the one with the number `inode`; it begins at `base`.
    """

    def __init__(self, index: Index, groups: Groups, path: str, inode: int, base: int) -> None:
        self._index = index
        self._groups = groups
        self._path = path
        self._inode = inode
        self._base = base

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of a stored module whose source is unchanged, else None."""
        found = self._index.get(name)
        if found is None:
            return None
        kind, source, size, changed, _, _ = found
        try:
            status = stat(source)
        except OSError:
            return None
        if status.st_size != size or status.st_mtime_ns != changed:
            return None
        loader = ExtensionFileLoader(name, source) if kind == EXTENSION else self
        spec = ModuleSpec(name, loader, origin=source, is_package=kind == PACKAGE)  # type: ignore[arg-type]
        spec.has_location = True
        if kind == PACKAGE:
            spec.submodule_search_locations = [source.rpartition("/")[0]]
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """None: an ordinary module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code."""
        name = module.__name__
        store = self._open()
        if store is None:
            SourceFileLoader(name, self._index[name][1]).exec_module(module)
            return
        try:
            code = self._code(store, name)
        finally:
            close(store)
        exec(code, module.__dict__)

    def _open(self) -> int | None:
        """A descriptor of the store, which is not kept: it would be in the way of those that a caller passes.

        None when another has taken its place.
        """
        try:
            store = open(self._path, O_RDONLY | O_CLOEXEC)
        except OSError:
            return None
        if fstat(store).st_ino == self._inode:
            return store
        close(store)
        return None

    def _code(self, store: int, name: str) -> CodeType:
        _, _, _, _, start, end = self._index[name]
        code: CodeType = marshal.loads(pread(store, end - start, self._base + start))
        return code

    def preload(self, word: str) -> None:
        """Import what a command with this word will, each module after those that it imports itself.

        Going through the importer for each would take as long again as running their code. Nothing is done
        when one of them has changed; when one fails, it and the rest are left to whoever imports them.
        """
        modules = sys.modules
        waiting = {}
        for name in self._groups.get(word, ()):
            if name not in modules:
                spec = self.find_spec(name)
                if spec is None:
                    return
                waiting[name] = module = type(sys)(name)  # `types` is not loaded
                module.__spec__ = spec
                module.__loader__ = self  # type: ignore[assignment]
                module.__file__ = spec.origin
                module.__package__ = spec.parent
                if spec.submodule_search_locations is not None:
                    module.__path__ = spec.submodule_search_locations
        store = self._open()
        if store is None:
            return
        modules.update(waiting)
        try:
            for name, module in list(waiting.items()):
                exec(self._code(store, name), module.__dict__)
                parent, _, child = name.rpartition(".")
                if parent:
                    setattr(modules[parent], child, module)
                del waiting[name]
        except Exception:
            for name in waiting:
                del modules[name]
        finally:
            close(store)


def install(index: Index, groups: Groups, path: str, store: int, base: int) -> None:
    """Look into the store before anywhere else; `store` is a descriptor of it."""
    sys.meta_path.insert(0, StoredModules(index, groups, path, fstat(store).st_ino, base))
