"""`python -m launcher up|restart|down|purge|status --state DIR`: one engine in a folder, without systemd."""

from __future__ import annotations

import argparse
import json
import os
import sys

from launcher import commands, purge, supervisor
from launcher.control import ask
from launcher.layout import Layout, Refused, services


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    try:
        if os.geteuid() != 0:
            raise Refused(
                "root is needed: containers need namespaces, mounts and cgroups of the host. Try it with sudo"
            )
        layout = Layout.of(options.state)
        match options.command:
            case "up":
                commands.up(layout, commands.supervisor_command(layout))
                print(f"The engine runs: export DOCKER_HOST=unix://{layout.api}")
            case "restart":
                commands.restart(layout, options.service)
            case "down":
                commands.down(layout)
            case "purge":
                purge.purge(layout)
            case "status":
                print(json.dumps(ask(layout.control, 5.0, op="status"), indent=2))
            case "supervise":
                return supervisor.main(layout, services(layout), options.report)
    except Refused as refusal:
        print(f"launcher: {refusal}", file=sys.stderr)
        return 1
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launcher", description=__doc__)
    verbs = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "start the services; return once the API answers"),
        ("restart", "restart one service in place; return when it is ready"),
        ("down", "stop the services; containers run on"),
        ("purge", "stop the services, remove containers, mounts, networks and the folder"),
        ("status", "print what runs, as JSON"),
        ("supervise", "run the services in the foreground (`up` does this)"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("--state", required=True, metavar="DIR", help="the engine's folder")
        if name == "restart":
            verb.add_argument("--service", required=True, metavar="NAME")
        if name == "supervise":
            verb.add_argument("--report", type=int, default=2, help="descriptor to say `ok` on")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
