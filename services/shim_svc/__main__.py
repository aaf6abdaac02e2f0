"""`shim-svc`: the nursery, and the commands by which containerd starts and cleans up a shim.

    shim-svc nursery --address PATH --sockets DIR --runtime-root DIR
    shim-svc -namespace N -id ID -address A [-publish-binary P] [-debug] start
    shim-svc -namespace N -id ID -address A -bundle B delete
    shim-svc -info | -v

The second form is containerd's contract for runtime shims (core/runtime/v2/README.md there): the working
directory is the bundle, `start` prints how to reach the shim, `delete` a DeleteResponse message.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VERSION = "0.1.0"
DEFAULT_SOCKETS = "/run/buoy/s"
DEFAULT_RUNTIME_ROOT = "/run/buoy/runc"

_VALUES = (
    "namespace",
    "id",
    "address",
    "publish-binary",
    "bundle",
    "socket",
    "sockets",
    "runtime-root",
)
_SWITCHES = ("debug", "info", "v", "version", "h", "help")
_USAGE = "\n".join((__doc__ or "").splitlines()[2:6])


class UsageError(Exception):
    """The command line is wrong; the text says how."""


def parse(words: list[str]) -> tuple[str, dict[str, str]]:
    """Split a command line into its action and flags, one dash or two, in Go's way of writing them."""
    flags: dict[str, str] = {}
    action = ""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            if action:
                raise UsageError(f"unexpected argument {word!r}")
            action = word
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name in _SWITCHES:
            flags[name] = value if equals else "true"
        elif name in _VALUES:
            if not equals:
                found = next(rest, None)
                if found is None:
                    raise UsageError(f"flag needs an argument: -{name}")
                value = found
            flags[name] = value
        else:
            raise UsageError(f"flag provided but not defined: -{name}")
    return action, flags


def _spare_imports() -> None:
    """Have libraries do without what they only look whether it is there: a shim verifies no certificates and
    no messages. What is loaded is memory that each fork has to map.
    """
    for name in ("ssl", "pydantic", "pydantic_core"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def main() -> int:
    """Run one command; returns the exit code."""
    from shim_svc.title import ensure_room

    try:
        action, flags = parse([word for word in sys.argv[1:] if not word.startswith("--title-room=")])
        if "v" in flags or "version" in flags:
            print(f"shim-svc:\n  Version:  {VERSION}\n")
            return 0
        if "h" in flags or "help" in flags:
            print(_USAGE)
            return 0
        if os.geteuid() != 0 and "info" not in flags:
            raise UsageError("shim-svc must be run as root: it mounts root file systems")
        if "info" in flags:
            from shim_svc.commands import info

            return info()
        _spare_imports()
        if action in ("nursery", "start"):
            ensure_room()
            sockets = Path(flags.get("sockets", DEFAULT_SOCKETS))
            run_dir = Path(flags["address"]).parent if action == "nursery" else sockets.parent
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

            from linux.interpreter import protect_self

            # Before anything else is loaded: this may execute the program anew.
            protect_self(str(run_dir))
        from shim_svc import commands

        if action == "nursery":
            return commands.nursery(flags)
        if not flags.get("namespace"):
            raise UsageError("shim namespace cannot be empty")
        if not flags.get("id"):
            raise UsageError("task id cannot be empty")
        if action == "start":
            return commands.start(flags)
        if action == "delete":
            return commands.delete(flags)
        raise UsageError(f"unknown action {action!r}" if action else "no action")
    except KeyError as error:
        print(f"shim-svc: flag -{error.args[0]} is needed", file=sys.stderr)
        return 1
    except UsageError as error:
        print(f"shim-svc: {error}\n{_USAGE}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
