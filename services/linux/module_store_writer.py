"""Writes the store that `linux.module_store` reads.

What only type checkers need is left out of our own code: docstrings, annotations, and the imports of typing
that nothing but annotations used. `typing` alone would cost a command 3 of its 20 milliseconds.
"""

from __future__ import annotations
import __future__

import ast
import json
import marshal
import os
import subprocess
from collections.abc import Mapping
from importlib.util import MAGIC_NUMBER
from types import CodeType
from typing import Any

from linux import module_store

# Modules that are imported for the sake of names alone, never for what their import does.
_NAMES_ONLY = ("typing", "collections.abc", "types")
_LIST_LOADED = """
import sys
before = set(sys.modules)
sys.path[:0] = {paths!r}
{start}
{statements}
from importlib.machinery import EXTENSION_SUFFIXES
loaded = []
for name, module in list(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if name in before or spec is None or name != spec.name:
        continue
    source = spec.origin or ""
    if source.endswith(".py"):
        loaded.append((name, {package} if hasattr(module, "__path__") else {module}, source))
    elif source.endswith(tuple(EXTENSION_SUFFIXES)):
        loaded.append((name, {extension}, source))
import json
print(json.dumps(loaded))
"""
_LIST_ORDER = """
import sys
sys.path[:0] = {paths!r}
{start}
store, done = sys.meta_path[0], []
def execute(module, load=store.exec_module):
    load(module)
    done.append(module.__name__)
store.exec_module = execute
{statements}
sys.meta_path.remove(store)
import json
print(json.dumps(done))
"""


def write(path: str, python: str, paths: list[str], warm: str, groups: Mapping[str, str]) -> None:
    """Write the store of all modules that the statements `warm` load, with `paths` before the standard
    library. `python` is the interpreter that will read it, of the version that runs this. `groups` has for
    words of the command line the statements that load what such a command imports.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    draft = f"{path}.new"
    _write(draft, paths, _loaded(python, paths, warm, ""), {})
    # Once more with that store, to leave out what is no longer loaded without the imports for annotations.
    modules = _loaded(python, paths, warm, start_lines(draft))
    _write(draft, paths, modules, {})
    orders = {word: _order(python, paths, statements, draft) for word, statements in groups.items()}
    _write(draft, paths, modules, orders)
    os.rename(draft, path)


def _loaded(python: str, paths: list[str], warm: str, start: str) -> list[tuple[str, int, str]]:
    """Name, kind and source of each module that `warm` loads and that Python itself has not built in."""
    script = _LIST_LOADED.format(
        paths=paths,
        start=start,
        statements=warm,
        module=module_store.MODULE,
        package=module_store.PACKAGE,
        extension=module_store.EXTENSION,
    )
    return [(name, kind, source) for name, kind, source in _printed(python, script)]


def _order(python: str, paths: list[str], statements: str, store: str) -> tuple[str, ...]:
    """The stored modules that the statements load, in the order in which they are ready."""
    script = _LIST_ORDER.format(paths=paths, start=start_lines(store), statements=statements)
    return tuple(_printed(python, script))


def _printed(python: str, script: str) -> list[Any]:
    done = subprocess.run([python, "-ISc", script], check=True, stdout=subprocess.PIPE, text=True)
    found: list[Any] = json.loads(done.stdout)
    return found


def _write(
    path: str, paths: list[str], modules: list[tuple[str, int, str]], groups: module_store.Groups
) -> None:
    index: module_store.Index = {}
    code = bytearray()
    for name, kind, source in modules:
        status = os.stat(source)
        start = len(code)
        if kind != module_store.EXTENSION:
            own = any(source.startswith(f"{folder}/") for folder in paths)
            code += marshal.dumps(_compile(source, own=own))
        index[name] = (kind, source, status.st_size, status.st_mtime_ns, start, len(code))
    reader = _compile(module_store.__file__, own=True)
    with open(path, "wb") as store:
        head = marshal.dumps((reader, index, groups))
        store.write(MAGIC_NUMBER + len(head).to_bytes(4, "little") + head + code)


def start_lines(path: str) -> str:
    """Statements for the head of a script that reads the store; without one they do nothing."""
    # Marshalled code of another Python must not be looked at: its magic number tells.
    return (
        "try:\n"
        "    import marshal\n"
        f"    with open({path!r}, 'rb') as store:\n"
        "        magic, size = store.read(4), int.from_bytes(store.read(4), 'little')\n"
        f"        if magic == {MAGIC_NUMBER!r} == __import__('_frozen_importlib_external').MAGIC_NUMBER:\n"
        "            reader, index, groups = marshal.loads(store.read(size))\n"
        "            scope = {'__name__': 'linux.module_store'}\n"
        "            exec(reader, scope)\n"
        f"            scope['install'](index, groups, {path!r}, store.fileno(), 8 + size)\n"
        "except (OSError, EOFError, ValueError, TypeError):\n"
        "    pass\n"
    )


def _compile(source: str, *, own: bool) -> CodeType:
    with open(source, "rb") as file:
        text = file.read()
    if not own:
        return compile(text, source, "exec", dont_inherit=True)
    tree = ast.parse(text, source)
    _strip(tree)
    code: CodeType = compile(tree, source, "exec", __future__.annotations.compiler_flag, dont_inherit=True)
    return code


def _strip(tree: ast.Module) -> None:
    """Take out what only readers and type checkers need."""
    _Stripper().visit(tree)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        if isinstance(node, ast.ImportFrom) and node.module in _NAMES_ONLY:
            node.names = [name for name in node.names if (name.asname or name.name) in used]
            if node.module == "collections.abc":
                node.module = "_collections_abc"  # the same, without all of `collections`
        elif isinstance(node, ast.Import):
            node.names = [
                name
                for name in node.names
                if name.name not in _NAMES_ONLY or (name.asname or name.name.partition(".")[0]) in used
            ]
        if not isinstance(node, ast.Import | ast.ImportFrom) or node.names:
            kept.append(node)
    tree.body = kept
    ast.fix_missing_locations(tree)


class _Stripper(ast.NodeTransformer):
    """Removes docstrings and annotations, and takes `TYPE_CHECKING` for the constant that it is.

    Of a class's annotations the names stay, since they may be the fields of a record.
    """

    def __init__(self) -> None:
        self._in_class = False

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._body(node, in_class=False)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._body(node, in_class=True)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node, in_class=False)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == "TYPE_CHECKING" and isinstance(node.ctx, ast.Load):
            return ast.copy_location(ast.Constant(False), node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if self._in_class or not isinstance(node.target, ast.Name):
            node.annotation = ast.copy_location(ast.Constant(None), node)
            return node
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def _body(self, node: ast.Module | ast.ClassDef | ast.FunctionDef, *, in_class: bool) -> ast.AST:
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body[:1] = [] if len(node.body) > 1 else [ast.copy_location(ast.Pass(), first)]
        outer, self._in_class = self._in_class, in_class
        self.generic_visit(node)
        self._in_class = outer
        return node
