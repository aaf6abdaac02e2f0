"""Where everything of one engine lies below its state folder, and which services make it up
(docs/contracts.md).
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

#: sun_path holds 108 bytes, the last of which ends the string (unix(7)).
LONGEST_SOCKET_PATH = 107
#: The longest name that a socket gets: where shims of others tell their events.
LONGEST_SOCKET_NAME = "run/containerd.sock.ttrpc"


class Refused(Exception):
    """What was asked cannot be done; the message is for the user."""


@dataclass(frozen=True)
class Socket:
    """A listening Unix stream socket that the launcher makes and passes on under `name`."""

    name: str
    path: Path
    mode: int = 0o600


@dataclass(frozen=True)
class Service:
    """One process to run: what a systemd unit would say of it."""

    name: str
    argv: tuple[str, ...]
    sockets: tuple[Socket, ...] = ()
    #: Seconds between a service's signs of life after which it is ended. 0: none is asked for.
    watchdog: float = 60.0
    #: Seconds from SIGTERM to SIGKILL.
    stop_timeout: float = 10.0
    #: "process": only the main process is signalled. "group": what it leaves behind in its session is killed.
    kill_mode: str = "group"
    #: The most descriptors that are kept for it; 0: none (systemd's FileDescriptorStoreMax).
    stored_fds: int = 0


@dataclass(frozen=True)
class Layout:
    """The folders of one engine. `state` is absolute and free of symbolic links."""

    state: Path

    @classmethod
    def of(cls, state: str) -> Layout:
        """The layout of a state folder that need not exist yet.

        Refuses one that socket paths do not fit below.
        """
        if not state or "\0" in state or "\n" in state:
            raise Refused("a state folder is needed: --state DIR")
        path = Path(os.path.realpath(state))
        room = LONGEST_SOCKET_PATH - len(LONGEST_SOCKET_NAME) - 1
        if len(os.fsencode(path)) > room:
            raise Refused(
                f"{path} is too long for a state folder: {len(os.fsencode(path))} bytes, at most {room},"
                f" since a socket's path below it must fit in {LONGEST_SOCKET_PATH}"
            )
        return cls(path)

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def lib(self) -> Path:
        return self.state / "lib"

    @property
    def lock(self) -> Path:
        """Locked by the supervisor for as long as it lives; holds its pid."""
        return self.run / "launcher.lock"

    @property
    def control(self) -> Path:
        return self.run / "launcher.sock"

    @property
    def processes(self) -> Path:
        """Pids and start times of the services, for the next supervisor should this one be killed."""
        return self.run / "launcher.json"

    @property
    def api(self) -> Path:
        return self.run / "docker.sock"

    @property
    def exec_root(self) -> Path:
        return self.run / "docker"

    @property
    def instance(self) -> str:
        """The name that tells this engine's bridge, table and cgroup from those of another on the host."""
        return hashlib.sha256(os.fsencode(self.state)).hexdigest()[:8]

    def pid_file(self, service: str) -> Path:
        return self.run / f"{service}.pid"

    def log_file(self, service: str) -> Path:
        return self.log / f"{service}.log"

    def notify_socket(self, service: str) -> Path:
        return self.run / "n" / service

    def make(self) -> None:
        """Make the folders, all 0700.

        Refuses a folder that holds something else, since purge deletes it whole.
        """
        if self.state.exists():
            if not self.state.is_dir():
                raise Refused(f"{self.state} is not a folder")
            found = self.state.lstat()
            if found.st_uid != os.geteuid():
                raise Refused(
                    f"{self.state} belongs to uid {found.st_uid}, not to the user who starts the engine"
                )
            if stat.S_IMODE(found.st_mode) & 0o022:
                raise Refused(f"{self.state} is writable by others than its owner")
            if not self.is_ours() and any(self.state.iterdir()):
                raise Refused(f"{self.state} is neither empty nor the state folder of an engine")
        for folder in (
            self.state,
            self.run,
            self.run / "n",
            self.run / "s",
            self.run / "containerd",
            self.run / "runc",
            self.exec_root,
            self.log,
            self.lib,
            self.lib / "containerd",
            self.lib / "docker",
        ):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.lock.touch(mode=0o600)

    def is_ours(self) -> bool:
        return self.lock.is_file()


def services(layout: Layout) -> tuple[Service, ...]:
    """The services in the order in which they are started; they are stopped in reverse."""
    run = layout.run
    python = (sys.executable, "-P", "-m")
    shims = ("--sockets", str(run / "s"))
    runtime = ("--runtime-root", str(run / "runc"))
    return (
        Service(
            name="shim-svc",
            argv=(*python, "shim_svc", "nursery", "--address", str(run / "shim.sock"), *shims, *runtime),
            sockets=(Socket("shim.sock", run / "shim.sock"),),
            kill_mode="process",
        ),
        Service(
            name="containerd-svc",
            argv=(
                *(*python, "containerd_svc", "--address", str(run / "containerd.sock")),
                *("--root", str(layout.lib / "containerd"), "--state", str(run / "containerd")),
                *(*shims, *runtime, "--nursery", str(run / "shim.sock")),
            ),
            sockets=(
                Socket("containerd.sock", run / "containerd.sock"),
                Socket("containerd.sock.ttrpc", run / "containerd.sock.ttrpc"),
            ),
            # Where no nursery answers it starts shims itself, and they are to live on when it is stopped.
            kill_mode="process",
        ),
        Service(
            name="dockerd-api",
            argv=(
                *(*python, "dockerd_api", "-H", f"unix://{layout.api}"),
                *("--containerd", str(run / "containerd.sock"), *shims),
                *("--exec-root", str(layout.exec_root), "--data-root", str(layout.lib / "docker")),
                *("--instance", layout.instance),
            ),
            sockets=(Socket("docker.sock", layout.api, mode=0o660),),
            stored_fds=16384,
        ),
    )
