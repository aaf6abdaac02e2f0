"""`dockerd-api`: the Docker API of Buoy."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import errdefs

from dockerd_api import config as configuration
from dockerd_api.config import Config
from dockerd_api.network.netns_helper import NetnsHelper

log = logging.getLogger("dockerd_api")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the daemon; the exit code is 1 when it cannot start."""
    try:
        config = configuration.parse(sys.argv[1:] if argv is None else argv)
        _configure_log(config)
        if os.geteuid() != 0:
            raise errdefs.PermissionDenied(
                "dockerd-api needs to be started with root privileges: it makes network namespaces, mounts "
                "and firewall rules"
            )
        helper = NetnsHelper.fork()  # before any thread exists
        lock = _lock(Path(config["data-root"]))
    except errdefs.BuoyError as error:
        print(f"dockerd-api: {error.message}", file=sys.stderr)
        return 1
    with lock:
        return _run(config, helper)


def _run(config: Config, helper: NetnsHelper) -> int:
    import uvloop  # these two start no thread, but take a while that a refusal need not wait for
    from rpc import service_manager

    from dockerd_api import wiring

    if config["pidfile"]:
        Path(config["pidfile"]).write_text(f"{os.getpid()}\n")
    try:
        uvloop.run(wiring.serve(config, helper, service_manager.listen_fds()))
    except errdefs.BuoyError as error:
        log.error("cannot go on: %s", error.message)
        return 1
    finally:
        if config["pidfile"]:
            Path(config["pidfile"]).unlink(missing_ok=True)
    return 0


def _configure_log(config: Config) -> None:
    levels = {"debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50}
    level = logging.DEBUG if config["debug"] else levels[config["log-level"]]
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in ("hpack", "grpclib", "asyncio", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _lock(data_root: Path) -> TextIO:
    """The open lock file of the data root; FailedPrecondition, naming the holder, when another engine has
    it.
    """
    data_root.mkdir(mode=0o710, parents=True, exist_ok=True)
    file = open(data_root / "dockerd-api.lock", "a+")  # noqa: SIM115 - open as long as the process lives
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise errdefs.FailedPrecondition(
            f"{data_root} is in use by another engine (process {holder})"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


if __name__ == "__main__":
    sys.exit(main())
