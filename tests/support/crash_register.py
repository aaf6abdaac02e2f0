"""The register of crash points: each `crashpoint("…")` that the code names."""

from __future__ import annotations

import ast

from tests.support.debian import REPO


def registered(*rooms: str) -> set[str]:
    """The names of all crash points in services/, or of those whose name begins with one of `rooms`.

    A name that is no literal is an error.
    """
    names = set()
    for path in (REPO / "services").rglob("*.py"):
        if path.name == "crashpoints.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "crashpoint":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: not a literal"
                names.add(str(argument.value))
    return {name for name in names if not rooms or name.startswith(rooms)}
