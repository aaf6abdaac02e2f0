"""A reverse proxy that makes mistakes: in front of a registry, in tests, in a thread of its own.

    with FaultProxy(registry.address) as proxy:
        proxy.address                                     # "127.0.0.1:PORT", instead of the registry's
        proxy.add(Fault(path=digest, cut_at=0.5))         # the answer's body breaks off at half, once
        proxy.add(Fault(path="/blobs/", cut_upload_at=0.1))   # a request's body is cut there
        proxy.add(Fault(path="manifests", status=429, headers={"Retry-After": "1"}, times=2))
        proxy.add(Fault(path=digest, corrupt=True))       # one byte in the middle is another
        proxy.add(Fault(delay=0.5, times=None))           # before each answer
        proxy.add(Fault(path=digest, rate=1_000_000))     # bytes a second
        proxy.add(Fault(path=digest, ignore_range=True))  # answers 200 with all of it
        proxy.sent[digest]                                # bytes of each blob that went to clients
        proxy.requests                                    # method, target, headers (names in small letters)

`path` is searched for in a request's target as a regular expression, `method` must be equal; the first fault
that fits and has times left is used up by a request. A cut connection is reset. Each connection serves one
request.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

_PIECE = 32 * 1024
_DIGEST = re.compile(r"/blobs/(sha256:[0-9a-f]{64})")


@dataclass
class Fault:
    """One mistake; `times` None is for ever."""

    path: str = ""
    method: str = ""
    times: int | None = 1
    cut_at: float | None = None
    cut_upload_at: float | None = None
    delay: float = 0.0
    corrupt: bool = False
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    rate: int = 0
    ignore_range: bool = False

    def _fits(self, method: str, target: str) -> bool:
        left = self.times is None or self.times > 0
        return left and self.method in ("", method) and re.search(self.path, target) is not None


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]


class FaultProxy:
    """Forwards to `upstream` (host:port, plain http) while the block lasts."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._faults: list[Fault] = []
        self.sent: collections.Counter[str] = collections.Counter()
        self.requests: list[Request] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._open: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def add(self, fault: Fault) -> None:
        self._faults.append(fault)

    def clear(self) -> None:
        """No faults from now on."""
        self._faults.clear()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._stop = asyncio.Event()
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._client, sock=self._listener)
        await self._stop.wait()
        server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._exchange(reader, writer)
        finally:
            writer.close()
            self._open.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begin = await reader.readexactly(1)
        if begin == b"\x16":  # a TLS handshake: answered as servers without TLS do
            writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            await writer.drain()
            return
        first, headers = _head(begin + await reader.readuntil(b"\r\n\r\n"))
        method, target, _ = first.split(" ", 2)
        self.requests.append(Request(method, target, headers))
        fault = next((each for each in self._faults if each._fits(method, target)), Fault())
        if fault.times is not None:
            fault.times -= 1
        await asyncio.sleep(fault.delay)
        if fault.status:
            await self._answered_here(fault, writer)
            return
        if fault.ignore_range:
            headers.pop("range", None)
        above, below = await asyncio.open_connection(*self._upstream)
        try:
            below.write(_packed(first, {**headers, "connection": "close"}))
            upload = asyncio.create_task(self._uploaded(reader, below, writer, headers, fault))
            try:
                await self._downloaded(above, writer, method, target, fault)
            finally:
                upload.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
                    await upload
        finally:
            below.close()

    async def _answered_here(self, fault: Fault, writer: asyncio.StreamWriter) -> None:
        length = {"Content-Length": str(len(fault.body)), "Connection": "close"}
        writer.write(_packed(f"HTTP/1.1 {fault.status} Fault", {**fault.headers, **length}) + fault.body)
        await writer.drain()

    async def _uploaded(
        self,
        reader: asyncio.StreamReader,
        below: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        headers: dict[str, str],
        fault: Fault,
    ) -> None:
        """The request's body, upstream."""
        length = int(headers.get("content-length") or 0)
        end = length if fault.cut_upload_at is None else int(length * fault.cut_upload_at)
        done = 0
        if headers.get("transfer-encoding") == "chunked":
            while data := await reader.read(_PIECE):
                below.write(data)
                await below.drain()
        while done < end:
            data = await reader.read(min(_PIECE, end - done))
            if not data:
                break
            below.write(data)
            await below.drain()
            done += len(data)
        if fault.cut_upload_at is not None:
            below.close()  # what has come so far is the registry's
            _reset(client)

    async def _downloaded(
        self,
        above: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        target: str,
        fault: Fault,
    ) -> None:
        """The answer, to the client."""
        first, headers = _head(await above.readuntil(b"\r\n\r\n"))
        while first.split(" ")[1] == "100":
            first, headers = _head(await above.readuntil(b"\r\n\r\n"))
        writer.write(_packed(first, {**headers, "connection": "close"}))
        found = _DIGEST.search(target)
        length = int(headers.get("content-length") or -1)
        cut = int(length * fault.cut_at) if fault.cut_at is not None else None
        done = 0
        while method != "HEAD":
            wanted = _PIECE if cut is None else min(_PIECE, cut - done)
            if cut is not None and wanted <= 0:
                await writer.drain()
                _reset(writer)
                return
            data = await above.read(wanted)
            if not data:
                break
            if fault.corrupt and done <= length // 2 < done + len(data):
                place = length // 2 - done
                data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            writer.write(data)
            await writer.drain()
            done += len(data)
            if found is not None and method == "GET":
                self.sent[found[1]] += len(data)
            if fault.rate:
                await asyncio.sleep(len(data) / fault.rate)
        await writer.drain()


def _head(data: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = data.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return first, headers


def _packed(first: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{first}\r\n{lines}\r\n".encode("latin-1")


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset, as a broken line does."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
