"""`runc-bin`: the command line of `libcontainer`, called as runc is called.

`main` may also be called in a forked child of a warm process, after `runc_bin.warm()`; it returns the exit
code.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from errdefs import BuoyError, FailedPrecondition, InvalidArgument, NotImplementedHere

from runc_bin import cli
from runc_bin.log import Log

VERSION = "0.1.0"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. `argv` is without the program's name; None takes this process's own arguments.

    Returns the exit code: 0, the program's own after a foreground `run` or `exec`, 1 for an error, 255 for
    a failed exec.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    log = None
    verb = ""
    try:
        flags, verb, rest = cli.split(words)
        if flags["version"]:
            sys.stdout.write(f"runc-bin version {VERSION}\nspec: 1.2.0\n")
            return _done()
        if not verb or verb in ("help", "h") or flags["help"]:
            return _help(verb, rest)
        if rest and rest[0] in ("--help", "-h"):
            return _help("help", [verb])
        _check_globals(flags)
        log = Log(str(flags["log"]), str(flags["log-format"]), debug=bool(flags["debug"]))
        context = cli.parse_verb(verb, rest, flags)
        if os.geteuid() != 0:
            raise FailedPrecondition("runc-bin must be run as root: it makes namespaces, mounts and cgroups")
        return command(context.verb).run(context, log) or _done()
    except BuoyError as error:
        return _fail(log, verb, error.message)
    except OSError as error:
        from runc_bin.libcontainer.failures import reason

        return _fail(log, verb, reason(error))
    finally:
        if log is not None:
            log.close()


def command(verb: cli.Verb) -> ModuleType:
    """The module of a verb."""
    return importlib.import_module(f"runc_bin.commands.{verb.module or verb.name}")


def _done() -> int:
    sys.stdout.flush()
    return 0


def _help(verb: str, rest: list[str]) -> int:
    topic = rest[0] if verb in ("help", "h") and rest else ""
    sys.stdout.write(cli.usage(cli.VERBS.get(topic)))
    return _done()


def _fail(log: Log | None, verb: str, message: str) -> int:
    if verb in ("create", "run"):
        message = f"runc {verb} failed: {message}"
    elif verb == "exec":
        message = f"exec failed: {message}"
    (log or Log("", "text", debug=False)).fatal(message)
    return 255 if verb == "exec" else 1


def _check_globals(flags: dict[str, cli.Value]) -> None:
    if flags["systemd-cgroup"]:
        raise NotImplementedHere("--systemd-cgroup is not supported: use the cgroupfs driver")
    if str(flags["rootless"]).lower() not in ("auto", "", "false", "0", "f"):
        raise NotImplementedHere("--rootless is not supported")
    root = os.path.abspath(str(flags["root"]))
    if root == "/":
        raise InvalidArgument("Option --root argument should not be set to /")
    flags["root"] = root


if __name__ == "__main__":
    sys.exit(main())
