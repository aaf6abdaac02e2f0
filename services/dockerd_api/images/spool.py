"""An uploaded archive on disk, without a name, so that nothing is left of it when the process dies.

The upload is written as it comes, uncompressed once when it is compressed as a whole, and then looked into:
members are found by their headers, and their data is read where it lies. Blocking work runs in threads.
"""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import errdefs
import zstandard
from isal import isal_zlib

_CHUNK = 1024 * 1024
_STEP = 4096
_MOST_MEMBERS = 100_000
_LONGEST_HEADER = 1024 * 1024
_DAMAGED: tuple[type[Exception], ...] = (
    zlib.error,
    cast(type[Exception], isal_zlib.error),
    lzma.LZMAError,
    zstandard.ZstdError,
    OSError,
    EOFError,
)


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes) -> bytes: ...


@dataclass(frozen=True)
class Piece:
    """Where a member's data lies in the spool."""

    offset: int
    size: int


def compression(head: bytes) -> str:
    """The kind of compression that the first bytes tell: gzip, zstd, bzip2, xz, or empty for none."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "zstd"
    if head.startswith(b"BZh"):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    return ""


async def decompressed(data: AsyncIterator[bytes], kind: str) -> AsyncIterator[bytes]:
    """The uncompressed stream of one that is compressed with `kind`; several members in a row are one stream.

    Raises InvalidArgument where it is damaged or ends early.
    """
    member = _Members(kind)
    async for chunk in data:
        member.waiting = chunk
        while member.waiting:
            try:
                plain = await asyncio.to_thread(member.step)
            except _DAMAGED as error:
                raise errdefs.InvalidArgument(f"invalid {kind} data: {error}") from error
            if plain:
                yield plain
    if not member.between:
        raise errdefs.InvalidArgument("unexpected EOF")


class _Members:
    """Compressed members in a row, uncompressed a bounded piece at a time."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._current = _decompressor(kind)
        self.between = True
        self.waiting = b""

    def step(self) -> bytes:
        """Uncompress from `waiting` until there is enough to write, or nothing more waits; blocks."""
        pieces, made = [], 0
        while self.waiting and made < _CHUNK:
            # zstd makes up to 32,000 times its input: what one call may make must fit into memory.
            piece, self.waiting = self.waiting[:_STEP], self.waiting[_STEP:]
            pieces.append(self._current.decompress(piece))
            made += len(pieces[-1])
            self.between = self._current.eof
            if self._current.eof:
                self.waiting = self._current.unused_data + self.waiting
                self._current = _decompressor(self._kind)
        return b"".join(pieces)


def _decompressor(kind: str) -> _Decompressor:
    if kind == "gzip":
        return cast(_Decompressor, isal_zlib.decompressobj(wbits=31))
    if kind == "zstd":
        return cast(_Decompressor, zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj())
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=256 * 1024 * 1024)


class Spool:
    """A tar archive on disk. Use as `async with receive(…) as spool`."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self._members: dict[str, Piece | str] = {}  # a string is a link's target

    def piece(self, name: str) -> Piece | None:
        """Where the data of the member `name` lies, links followed; None when there is no such file."""
        for _ in range(16):
            found = self._members.get(_clean(name))
            if not isinstance(found, str):
                return found
            name = found
        return None

    def read(self, piece: Piece, limit: int, what: str) -> bytes:
        """All of a small member. Raises InvalidArgument when it is larger than `limit` bytes."""
        if piece.size > limit:
            raise errdefs.InvalidArgument(f"invalid archive: {what} is larger than {limit} bytes")
        return os.pread(self._fd, piece.size, piece.offset)

    def uncompressed_digest(self, piece: Piece) -> str:
        """sha256 of a member's data, uncompressed when it is compressed; blocks. Raises InvalidArgument."""
        digest = hashlib.sha256()
        kind = compression(os.pread(self._fd, min(piece.size, 6), piece.offset))
        member = _Members(kind) if kind else None
        done = 0
        while done < piece.size:
            data = os.pread(self._fd, min(_CHUNK, piece.size - done), piece.offset + done)
            done += len(data)
            if member is None:
                digest.update(data)
                continue
            member.waiting = data
            try:
                while member.waiting:
                    digest.update(member.step())
            except _DAMAGED as error:
                raise errdefs.InvalidArgument(f"invalid {kind} data: {error}") from error
        if member is not None and not member.between:
            raise errdefs.InvalidArgument("unexpected EOF")
        return f"sha256:{digest.hexdigest()}"

    async def stream(self, piece: Piece) -> AsyncIterator[bytes]:
        """The data of a member, in chunks."""
        done = 0
        while done < piece.size:
            wanted = min(_CHUNK, piece.size - done)
            data = await asyncio.to_thread(os.pread, self._fd, wanted, piece.offset + done)
            done += len(data)
            yield data

    def index(self) -> None:
        """Find the members; blocks. Raises InvalidArgument for an archive that is damaged or that points
        outside.
        """
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            end = os.fstat(self._fd).st_size
            for member in _members(file, end):
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise errdefs.InvalidArgument(
                        f"invalid archive: {member.name[:200]!r} is outside of the archive's root"
                    )
                name = _clean(member.name)
                if member.isfile():
                    self._members[name] = Piece(member.offset_data, member.size)
                elif member.islnk():
                    self._members[name] = member.linkname
                elif member.issym():
                    self._members[name] = os.path.join(os.path.dirname(name), member.linkname)
                if len(self._members) > _MOST_MEMBERS:
                    raise errdefs.InvalidArgument(f"invalid archive: more than {_MOST_MEMBERS} members")


@contextlib.asynccontextmanager
async def receive(data: AsyncIterator[bytes], folder: Path) -> AsyncIterator[Spool]:
    """Write the upload to an unnamed file in `folder`, and index it. Raises InvalidArgument for a damaged
    one, ResourceExhausted for a full disk; whatever `data` raises goes through.
    """
    descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        head, whole = await peeked(data)
        kind = compression(head)
        async for chunk in decompressed(whole, kind) if kind else whole:
            await asyncio.to_thread(_write, descriptor, chunk)
        spool = Spool(descriptor)
        await asyncio.to_thread(spool.index)
        yield spool
    finally:
        os.close(descriptor)


async def peeked(data: AsyncIterator[bytes]) -> tuple[bytes, AsyncIterator[bytes]]:
    """The first bytes, at least six where there are as many, and the stream with them still in it."""
    head = b""
    async for chunk in data:
        head += chunk
        if len(head) >= 6:
            break

    async def whole() -> AsyncIterator[bytes]:
        if head:
            yield head
        async for chunk in data:
            yield chunk

    return head, whole()


def _members(file: BinaryIO, end: int) -> Iterator[tarfile.TarInfo]:
    """Every member of the archive, whose data is all there."""
    archive = _Archive(file)
    while True:
        if archive.offset > end:
            raise errdefs.InvalidArgument("unexpected EOF")
        file.seek(archive.offset)
        try:
            member = tarfile.TarInfo.fromtarfile(cast(tarfile.TarFile, archive))
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            return
        except (tarfile.TruncatedHeaderError, tarfile.SubsequentHeaderError) as error:  # type: ignore[attr-defined]
            raise errdefs.InvalidArgument("unexpected EOF") from error
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise errdefs.InvalidArgument("archive/tar: invalid tar header") from error
        if member.size < 0 or archive.offset < file.tell() - _LONGEST_HEADER:
            raise errdefs.InvalidArgument("archive/tar: invalid tar header")
        yield member


class _Archive:
    """What TarInfo needs of the TarFile that it is read from; headers of more than a megabyte are refused."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.fileobj = self
        self.encoding = "utf-8"
        self.errors = "surrogateescape"
        self.pax_headers: dict[str, str] = {}
        self.tarinfo = tarfile.TarInfo
        self.offset = 0

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise ValueError("header is too long")
        return self._file.read(size)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        return self._file.seek(position)


def _clean(name: str) -> str:
    return os.path.normpath(name).lstrip("/")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise errdefs.ResourceExhausted(f"cannot store the upload: {error.strerror}") from error
