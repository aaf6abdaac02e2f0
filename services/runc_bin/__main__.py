"""`runc-bin`: the command line of `libcontainer`, called as runc is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_ENTERING = ("create", "run", "exec")
_DEFAULT_ROOT = "/run/buoy-runc"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    `argv` are the arguments, as a forked child of a warm process gives them (see `runc_bin.warm`); None takes
    this process's own, and then a command that enters a container first goes on on a protected interpreter.
    The code is 0, the program's own after a foreground `run` or `exec`, 1 for an error, 255 for a failed
    exec.
    """
    words = sys.argv[1:] if argv is None else argv
    if argv is None:
        root, verb = _root_and_verb(words)
        _protect(root, verb)
        for finder in sys.meta_path:  # where the launcher found a store of modules: `linux.module_store`
            getattr(finder, "preload", _without_store)(verb)
    from runc_bin.dispatch import dispatch

    return dispatch(words)


def _without_store(verb: str) -> None:
    """Other finders find one module at a time."""


def _protect(root: str, verb: str) -> None:
    """Have the interpreter out of containers' reach, before more is loaded than this file (CVE-2019-5736)."""
    if verb in _ENTERING:
        from linux.interpreter import protect_self

        protect_self(os.path.join(os.path.abspath(root), "@python"))


def _root_and_verb(words: Sequence[str]) -> tuple[str, str]:
    """What `cli.split` will find, by a look that needs no import."""
    root = _DEFAULT_ROOT
    index = 0
    while index < len(words):
        name, equals, value = words[index].lstrip("-").partition("=")
        index += 1
        if not words[index - 1].startswith("-"):
            return root, name
        if name in ("root", "log", "log-format", "criu", "rootless") and not equals:
            value = words[index] if index < len(words) else ""
            index += 1
        if name == "root":
            root = value
    return root, ""


if __name__ == "__main__":
    sys.exit(main())
