"""A tar archive read once, front to back, from an untrusted source.

The header formats (ustar, GNU, pax, sparse) are the standard library's TarInfo; what its TarFile forgives is
an error here, as it is to Go's archive/tar: a header that does not add up, an archive cut short. No header
may take more than a megabyte of memory. Every byte read counts into the digest of the uncompressed stream.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import zstandard
from isal import igzip, isal_zlib

_CHUNK = 1024 * 1024
_LONGEST_HEADER = 1024 * 1024
_DAMAGED: tuple[type[Exception], ...] = (
    igzip.BadGzipFile,
    zlib.error,
    cast(type[Exception], isal_zlib.error),
    zstandard.ZstdError,
)


class BadArchive(ValueError):
    """The archive cannot be what it claims to be. The text is for the user."""


class Stream:
    """Uncompressed bytes, forward only, with a digest and a count of all that went by."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self.position = 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end. For headers, so a large size is an error."""
        if size > _LONGEST_HEADER:
            raise BadArchive(f"archive/tar: header of {size} bytes is too long")
        return self._read(size)

    def seek(self, position: int) -> None:
        """Skip forward to `position`; the archive must reach that far."""
        if position < self.position:
            raise BadArchive("archive/tar: invalid tar header")
        for _ in self.chunks(position - self.position):
            pass

    def tell(self) -> int:
        """Bytes read so far."""
        return self.position

    def chunks(self, size: int) -> Iterator[bytes]:
        """Exactly the next `size` bytes, in pieces. Raises BadArchive when the archive ends before."""
        left = size
        while left:
            data = self._read(min(left, _CHUNK))
            if not data:
                raise BadArchive("unexpected EOF")
            left -= len(data)
            yield data

    def drain(self) -> None:
        """Read what follows the archive, so that the digest covers it."""
        while self._read(_CHUNK):
            pass

    @property
    def digest(self) -> str:
        """sha256 of what was read."""
        return f"sha256:{self._hash.hexdigest()}"

    def _read(self, size: int) -> bytes:
        pieces = []
        left = size
        while left:
            try:
                data = self._raw.read(left)
            except EOFError as error:
                raise BadArchive("unexpected EOF") from error
            except _DAMAGED as error:
                raise BadArchive(f"invalid compressed data: {error}") from error
            if not data:
                break
            pieces.append(data)
            left -= len(data)
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._hash.update(whole)
        self.position += len(whole)
        return whole


def decompressed(file: BinaryIO) -> BinaryIO:
    """The uncompressed stream of a seekable file that is plain, gzip or zstd, told by its first bytes."""
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, igzip.open(file, "rb"))  # type: ignore[no-untyped-call]
    if magic == b"\x28\xb5\x2f\xfd":
        return cast(BinaryIO, _Zstd(file))
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, file), _CHUNK))


class _Zstd:
    """The uncompressed stream of zstd frames; unlike the library's reader it tells when one ends early."""

    # A frame makes up to 32,000 times its size: what one step may make must fit into memory.
    _STEP = 4096
    # A window of 128 MB is what `zstd --long` asks of a reader; more is an attack on memory.
    _WINDOW = 1 << 27

    def __init__(self, file: BinaryIO) -> None:
        self._file = io.BufferedReader(cast(io.RawIOBase, file), _CHUNK)
        self._frames = zstandard.ZstdDecompressor(max_window_size=self._WINDOW)
        self._frame = self._frames.decompressobj()
        self._between = True
        self._waiting = b""
        self._plain = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end. Raises EOFError within a frame."""
        while not self._plain:
            data = self._waiting or self._file.read(self._STEP)
            self._waiting = b""
            if not data:
                if not self._between:
                    raise EOFError
                return b""
            self._plain = self._frame.decompress(data)
            self._between = self._frame.eof
            if self._frame.eof:
                self._waiting = self._frame.unused_data
                self._frame = self._frames.decompressobj()
        plain, self._plain = self._plain[:size], self._plain[size:]
        return plain


class _Archive:
    """What TarInfo needs of the TarFile that it is read from."""

    def __init__(self, stream: Stream) -> None:
        self.fileobj = stream
        self.encoding = "utf-8"
        self.errors = "surrogateescape"  # names and attributes are bytes: they come back as they were
        self.pax_headers: dict[str, str] = {}
        self.tarinfo = tarfile.TarInfo
        self.offset = 0


def members(stream: Stream) -> Iterator[tarfile.TarInfo]:
    """Every member, with the stream at its data. Raises BadArchive where the archive is damaged."""
    archive = _Archive(stream)
    while True:
        stream.seek(archive.offset)
        try:
            member = tarfile.TarInfo.fromtarfile(cast(tarfile.TarFile, archive))
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            return
        except (tarfile.TruncatedHeaderError, tarfile.SubsequentHeaderError) as error:  # type: ignore[attr-defined]
            raise BadArchive("unexpected EOF") from error
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, BadArchive):
                raise
            raise BadArchive("archive/tar: invalid tar header") from error
        if member.size < 0 or archive.offset < stream.position - _LONGEST_HEADER:
            raise BadArchive("archive/tar: invalid tar header")
        yield member
