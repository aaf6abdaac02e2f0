"""Shims that others wrote: how they are started, cleaned up behind, and what they log.

Source: containerd's docs/runtime-v2.md, and what its daemon passes to a shim (core/runtime/v2/binary.go,
pkg/shim/util.go).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import sys
from pathlib import Path

import errdefs
from pb.containerd.task.v2 import DeleteResponse

from containerd_svc.bundle import Bundle
from containerd_svc.shim_command import call_shim

log = logging.getLogger(__name__)

_NEWEST = 3  # version of the Task API
_OLDEST = 2
_START = 15.0  # seconds until a new shim answers
_DELETE = 20.0  # seconds for cleaning up behind a dead shim
_CHUNK = 64 * 1024
_LINE = 2_000  # characters of one line of a shim's log that are kept


def events_address(address: str) -> str:
    """The socket that shims forward their events to, beside the one of the API at `address`."""
    return f"{address}.ttrpc"


class ForeignShims:
    """address: of the gRPC API, which such a shim is told."""

    def __init__(self, *, address: str, debug: bool) -> None:
        self._address = address
        self._debug = debug
        self._logs: dict[Path, _Log] = {}

    async def start(self, bundle: Bundle, shim: str) -> tuple[str, int]:
        """Start the bundle's shim, or have it say where the one is that it shares; the path of its socket and
        the version of its Task API. Raises Unavailable, DeadlineExceeded, NotImplementedHere.
        """
        self.read_log(bundle)
        with contextlib.suppress(FileExistsError):
            (bundle.path / "work").mkdir(mode=0o711)  # where it tells its runtime to leave files
        record = bundle.record()
        options = record.request.options if record is not None else None
        output = await self._call(
            bundle, shim, ["start"], stdin=bytes(options) if options is not None else b"", timeout=_START
        )
        path, version = start_answer(output)
        bundle.write_bootstrap(f"unix://{path}", version)
        return path, version

    async def delete(self, bundle: Bundle, shim: str) -> DeleteResponse:
        """Have a dead shim's program end what it left running; how the container ended. Raises Unavailable
        or DeadlineExceeded.
        """
        output = await self._call(bundle, shim, ["-bundle", str(bundle.path), "delete"], timeout=_DELETE)
        found = bundle.bootstrap()
        if found is not None:
            _remove_socket(found[0])
        try:
            return DeleteResponse.parse(output)
        except Exception as error:  # the parser's failures have no common class
            raise errdefs.Unavailable(f"{shim} delete: unreadable answer: {error}") from error

    def read_log(self, bundle: Bundle) -> None:
        """Have what the shim writes to its named pipe in our log, until `forget`."""
        if bundle.path not in self._logs:
            self._logs[bundle.path] = _Log(bundle)

    def forget(self, bundle: Bundle) -> None:
        """The shim is gone, or this daemon goes."""
        found = self._logs.pop(bundle.path, None)
        if found is not None:
            found.close()

    async def _call(
        self, bundle: Bundle, shim: str, action: list[str], *, timeout: float, stdin: bytes = b""
    ) -> bytes:
        words = [shim, "-namespace", bundle.namespace, "-address", self._address]
        words += ["-publish-binary", _publish_binary(), "-id", bundle.id]
        if self._debug:
            words.append("-debug")
        environment = {
            **os.environ,
            "MAX_SHIM_VERSION": str(_NEWEST),
            "TTRPC_ADDRESS": events_address(self._address),
            "GRPC_ADDRESS": self._address,
            "NAMESPACE": bundle.namespace,
        }
        return await call_shim(
            [*words, *action], folder=bundle.path, timeout=timeout, stdin=stdin, environment=environment
        )


def start_answer(output: bytes) -> tuple[str, int]:
    """The socket's path and the version of the Task API in what a shim's `start` printed: bootstrap
    parameters, or from an older shim the bare address.

    Raises Unavailable for what is neither, NotImplementedHere for a protocol or a version that is not spoken
    here.
    """
    text = output.decode(errors="replace").strip()
    try:
        found = json.loads(text)
    except ValueError:
        found = {"version": _OLDEST, "address": text, "protocol": "ttrpc"}
    try:
        address, version, protocol = str(found["address"]), int(found["version"]), str(found["protocol"])
    except (ValueError, KeyError, TypeError):
        raise errdefs.Unavailable(
            f"the shim's answer is neither an address nor parameters: {text!r}"
        ) from None
    if protocol != "ttrpc":
        raise errdefs.NotImplementedHere(f"shims that speak {protocol or 'nothing'} are not supported")
    if not _OLDEST <= version <= _NEWEST:
        raise errdefs.NotImplementedHere(f"version {version} of the Task API is not supported")
    path = address.removeprefix("unix://")
    if not os.path.isabs(path):
        raise errdefs.NotImplementedHere(f"the shim's address {address!r} is no path of a Unix socket")
    return path, version


def _publish_binary() -> str:
    """The installed command beside this interpreter, or wherever it is found."""
    beside = Path(sys.executable).with_name("containerd-svc")
    return str(beside) if beside.exists() else shutil.which("containerd-svc") or "containerd-svc"


def _remove_socket(path: str) -> None:
    """A killed shim leaves its socket; one that other bundles share may live."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(path)
        except OSError:
            pass


class _Log:
    """The named pipe `log` of a bundle, which a shim opens before it serves, and waits for a reader of. It is
    open for writing too, so that no end of file comes between two writers.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._id = bundle.id
        self._rest = b""
        path = bundle.path / "log"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_LINE:]
        for line in lines:
            log.info("shim of %s: %s", self._id[:12], line[:_LINE].decode(errors="replace"))

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
