"""Removing what an engine left in the kernel when no daemon runs: `python -m dockerd_api.network.purge`.

Works from names alone (contracts.md): the namespaces below the run folder, the instance's table and bridge.
Forwarding is switched back only when the engine switched it on and no other bridge is there to need it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import errdefs
from linux import netns

from dockerd_api.network.drivers.bridge import bridge_name, remove_link, restore_forwarding
from dockerd_api.network.firewall import Firewall, table_name
from dockerd_api.network.settings import Settings


def purge(instance: str, exec_root: Path) -> None:
    """Remove namespaces, table and bridge of an instance (idempotent). Raises errdefs.Internal."""
    folder = exec_root / "netns"
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            netns.delete(str(folder / name))
        folder.rmdir()
    firewall = Firewall(table_name(instance))
    firewall.purge()
    firewall.close()
    remove_link(bridge_name(instance, Settings()))
    restore_forwarding(exec_root / "ip_forward")
    with contextlib.suppress(FileNotFoundError):
        (exec_root / "netns.lock").unlink()


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dockerd_api.network.purge", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--instance", default="", help="the engine's instance name (empty: the installed one)"
    )
    parser.add_argument("--exec-root", required=True, type=Path, help="the engine's run folder")
    options = parser.parse_args(argv)
    try:
        purge(options.instance, options.exec_root)
    except errdefs.BuoyError as error:
        print(f"purge: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
