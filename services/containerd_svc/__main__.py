"""`containerd-svc`: the only place that reads the command line and the environment."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import errdefs
import uvloop
from http_client.proxies import Proxies
from rpc import service_manager

from containerd_svc import config
from containerd_svc.daemon import Settings, serve
from containerd_svc.foreign_shims import events_address
from containerd_svc.hold import hold
from containerd_svc.publish import publish

_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50, "panic": 50}


def main(argv: list[str] | None = None) -> int:
    """Run the daemon until SIGTERM or SIGINT, or publish an event; the exit status."""
    options = _options().parse_args(argv)
    logging.basicConfig(
        level=_LEVELS[options.log_level],
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for library in ("grpclib", "asyncio", "hpack", "h2", "httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    if options.command == "publish":
        try:
            publish(options.address, options.namespace, options.topic, sys.stdin.buffer.read())
        except errdefs.BuoyError as error:
            print(f"containerd-svc: {error.message}", file=sys.stderr)
            return 1
        return 0
    if os.geteuid() != 0:
        print(
            "containerd-svc: needs root: it makes mounts and namespaces for containers. Run it with sudo.",
            file=sys.stderr,
        )
        return 1
    # The event loop hands work to threads all the time: it must get the interpreter back at once.
    sys.setswitchinterval(0.0005)
    try:
        settings = Settings(
            root=Path(os.path.abspath(options.root)),
            state=Path(os.path.abspath(options.state)),
            address=os.path.abspath(options.address),
            sockets=Path(os.path.abspath(options.sockets)),
            runtime_root=os.path.abspath(options.runtime_root),
            nursery=os.path.abspath(options.nursery),
            debug=options.log_level in ("trace", "debug"),
            config=config.load(Path(options.config)) if options.config else config.Config(),
            proxies=Proxies.of(os.environ),
        )
        passed = service_manager.listen_fds()
        held = hold(settings.root, settings.state)
        listener = service_manager.listening_socket(passed, "containerd.sock", settings.address)
        listener.setblocking(False)
        address = events_address(settings.address)
        shim_listener = service_manager.listening_socket(passed, "containerd.sock.ttrpc", address)
        settings.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        uvloop.run(_run(settings, listener, shim_listener))
    except errdefs.BuoyError as error:
        print(f"containerd-svc: {error.message}", file=sys.stderr)
        return 1
    for fd in held:
        os.close(fd)
    return 0


async def _run(settings: Settings, listener: socket.socket, shim_listener: socket.socket) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, listener, shim_listener, stop)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="containerd-svc", description="containerd's services for Buoy")
    parser.add_argument("--config", default="", help="a TOML file in the form of containerd's, version 2")
    parser.add_argument("--root", default="/var/lib/buoy/containerd", help="data that outlives a boot")
    parser.add_argument("--state", default="/run/buoy/containerd", help="bundles; on a tmpfs")
    parser.add_argument("--address", default="/run/buoy/containerd.sock", help="the API's Unix socket")
    parser.add_argument("--sockets", default="/run/buoy/s", help="folder of the shims' sockets")
    parser.add_argument("--runtime-root", default="/run/buoy/runc", help="the runtime's states")
    parser.add_argument("--nursery", default="/run/buoy/shim.sock", help="the socket of shim-svc nursery")
    parser.add_argument("--log-level", default="info", choices=sorted(_LEVELS))
    commands = parser.add_subparsers(dest="command", metavar="[publish]")
    event = commands.add_parser("publish", help="publish an event, an Any on the standard input")
    event.add_argument("--namespace", default="", help="the namespace that it happened in")
    event.add_argument("--topic", default="", help="what it tells of")
    return parser


if __name__ == "__main__":
    sys.exit(main())
