"""Docker's json-file format, written: {"log":"text\\n","stream":"stdout","attrs":{…},"time":"…Z"}, escaped as
Go's encoder escapes for HTML. Source: what moby's json-file driver writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from container_log.json_decoding import decode
from container_log.run import Damage, Run
from container_log.times import timestamp

_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SURROGATES = re.compile("[\udc80-\udcff]")


def escape(data: bytes) -> bytes:
    """Escape text for a JSON string; newlines are left alone. Bytes that are not UTF-8 become \\ufffd
    each.
    """
    data = (
        data.replace(b"\\", b"\\\\")
        .replace(b'"', b'\\"')
        .replace(b"\r", b"\\r")
        .replace(b"\t", b"\\u0009")
        .replace(b"<", b"\\u003c")
        .replace(b">", b"\\u003e")
        .replace(b"&", b"\\u0026")
    )
    data = _CONTROLS.sub(lambda found: b"\\u%04x" % found.group()[0], data)
    if not data.isascii():
        text = data.decode("utf-8", "surrogateescape")
        if _SURROGATES.search(text):
            text = _SURROGATES.sub(r"\\ufffd", text)
        data = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode()
    return data


class JsonEncoder:
    """Encodes runs as entries. attrs: what every entry carries."""

    def __init__(self, attrs: Mapping[str, str] | None = None) -> None:
        self._attrs = b""
        if attrs:
            pairs = (
                b'"%s":"%s"' % (escape(name.encode()), escape(value.encode()).replace(b"\n", b"\\n"))
                for name, value in sorted(attrs.items())
            )
            self._attrs = b',"attrs":{%s}' % b",".join(pairs)

    def encode(self, stream: str, text: bytes, time: int, part: int) -> bytes:
        """The entries of a run; part as in `members`."""
        tail = b'","stream":"%s"%s,"time":"%s"}\n' % (stream.encode(), self._attrs, timestamp(time))
        if not text.endswith(b"\n"):
            return b'{"log":"' + escape(text) + tail
        tail = b"\\n" + tail
        return b'{"log":"' + escape(text[:-1]).replace(b"\n", tail + b'{"log":"') + tail

    def lines(self, data: bytes) -> int:
        """How many entries these are."""
        return data.count(b"\n")

    def entries(self, data: bytes) -> list[Run | Damage]:
        """The entries."""
        return list(decode(data))
