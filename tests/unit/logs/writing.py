"""Logs made as the shim's writer makes them, without its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from container_log.entries import Encoder, Entries, RunEncoder
from container_log.json_encoding import JsonEncoder
from container_log.reader import LogOptions, LogReader
from container_log.run import STREAMS
from shim_svc.log_file import FramedFile, LogFile

RAW = LogOptions(multiplexed=False)


class Log:
    """Entries that go into a file at once. driver: json-file or local."""

    def __init__(self, path: Path, driver: str, **options: Any) -> None:
        encoder: Encoder = RunEncoder() if driver == "local" else JsonEncoder()
        self.entries = Entries(encoder)
        kind = FramedFile if driver == "local" else LogFile
        self.file = kind(str(path), indexed=True, **options)

    def write(self, stream: str, data: bytes) -> None:
        self.append(self.entries.of(stream, data))

    def append(self, data: bytes) -> None:
        while data:
            if self.file.full:
                self.file.rotate()
                self.compress()
            data = data[self.file.append(data, self.entries.latest) :]

    def compress(self) -> None:
        while (compression := self.file.begin_compression()) is not None:
            assert compression.finish()

    def close(self) -> None:
        for stream in STREAMS:
            self.append(self.entries.last(stream))
        self.file.close()


def read_all(log: LogReader) -> bytes:
    """Until the end, for now, and what is said of a torn one."""
    out = []
    while True:
        data, end = log.read()
        out.append(data)
        if log.done:
            return b"".join(out)
        if end:
            return b"".join(out) + (log.damage(log.torn) if log.torn else b"")
