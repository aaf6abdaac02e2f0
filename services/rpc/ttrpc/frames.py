"""The frames of ttrpc.

A frame is a header of 10 bytes (data length u32, stream id u32, both big-endian, message type u8, flags u8)
and the data. A unary call is one Request frame of a new odd stream id and one Response frame of the same id.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct(">IIBB")
MAX_DATA = 4 << 20  # bytes of data in one frame (messageLengthMax of the reference implementation)
REQUEST, RESPONSE, DATA = 1, 2, 3
REMOTE_CLOSED, REMOTE_OPEN = 0x1, 0x2


class Frames:
    """Cuts a byte stream into frames; a frame that is too long is skipped and reported by `oversized`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> None:
        """Take bytes as they come."""
        buffer = self._buffer
        buffer += data
        start = 0
        while True:
            if self._skip:
                taken = min(self._skip, len(buffer) - start)
                self._skip -= taken
                start += taken
                if self._skip:
                    break
            if len(buffer) - start < HEADER.size:
                break
            length, stream, kind, flags = HEADER.unpack_from(buffer, start)
            if length > MAX_DATA:
                start += HEADER.size
                self._skip = length
                self.oversized(stream, length)
                continue
            end = start + HEADER.size + length
            if len(buffer) < end:
                break
            self.frame(stream, kind, flags, bytes(buffer[start + HEADER.size : end]))
            start = end
        del buffer[:start]

    def send(self, stream: int, kind: int, data: bytes) -> None:
        """Queue one frame; nothing is sent on a connection that is gone."""
        self.write(HEADER.pack(len(data), stream, kind, 0) + data)

    def write(self, data: bytes) -> None:
        """Send bytes, in order, or queue them."""
        raise NotImplementedError

    def frame(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        """One whole frame has arrived."""
        raise NotImplementedError

    def oversized(self, stream: int, length: int) -> None:
        """A frame of `length` bytes of data begins, and is skipped."""
        raise NotImplementedError
