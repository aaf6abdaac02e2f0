"""From a command line to an exit code: global flags, log, verb, and how errors are told."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from errdefs import BuoyError, InvalidArgument

from runc_bin import cli
from runc_bin.libcontainer.failures import reason
from runc_bin.log import Log
from runc_bin.output import emit

VERSION = "0.1.0"


def dispatch(words: Sequence[str]) -> int:
    """Run one command; `words` are its arguments. Returns its exit code: see `runc_bin.__main__.main`."""
    log = None
    verb = ""
    # A life of milliseconds leaves no garbage worth collecting, and a collection copies every page of a fork.
    gc.disable()
    try:
        flags, verb, rest = cli.split(words)
        if flags["version"]:
            emit(_version())
            return 0
        if not verb or verb in ("help", "h") or flags["help"]:
            return _help(verb, rest)
        if rest and rest[0] in ("--help", "-h"):
            return _help("help", [verb])
        _check_globals(flags)
        log = Log(str(flags["log"]), str(flags["log-format"]), debug=bool(flags["debug"]))
        context = cli.parse_verb(verb, rest, flags)
        code: int = command(context.verb).run(context, log)
        return code
    except BuoyError as error:
        return _fail(log, verb, error.message)
    except Exception as error:  # the edge: whatever it is, the caller reads it in the log
        return _fail(log, verb, reason(error))
    finally:
        if log is not None:
            log.close()


def command(verb: cli.Verb) -> ModuleType:
    """The module of a verb."""
    name = f"runc_bin.commands.{verb.module or verb.name}"
    __import__(name)
    return sys.modules[name]


def _help(verb: str, rest: list[str]) -> int:
    topic = rest[0] if verb in ("help", "h") and rest else ""
    # podman asks for the help of `checkpoint` to learn whether there is such a verb
    emit(cli.usage(cli.find(topic) if topic else None))
    return 0


def _version() -> str:
    """Lines of `name: value` below the first, as callers of runc read them."""
    from runc_bin.libcontainer import seccomp
    from runc_bin.libcontainer.state import OCI_VERSION

    lines = [f"runc-bin version {VERSION}", f"spec: {OCI_VERSION}", f"python: {sys.version.split()[0]}"]
    library = seccomp.library_version()
    if library:
        lines.append(f"libseccomp: {library}")
    return "".join(f"{line}\n" for line in lines)


def _fail(log: Log | None, verb: str, message: str) -> int:
    if verb in ("create", "run"):
        message = f"runc {verb} failed: {message}"
    elif verb == "exec":
        message = f"exec failed: {message}"
    (log or Log("", "text", debug=False)).fatal(message)
    return 255 if verb == "exec" else 1


def _check_globals(flags: dict[str, cli.Value]) -> None:
    root = str(flags["root"])
    root = os.path.abspath(root) if root else cli.default_root()
    if root == "/":
        raise InvalidArgument("Option --root argument should not be set to /")
    flags["root"] = root
