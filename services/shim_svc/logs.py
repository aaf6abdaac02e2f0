"""The log of one container, written by the shim itself: Docker's drivers json-file, local and journald.

Writing never waits and never fails (see disk_writer): what the disk or journald does not take in time is
dropped in whole lines and counted, and an entry of stderr says so where they are missing.
"""

from __future__ import annotations

from collections.abc import Callable

import errdefs
from container_log.entries import Encoder, Entries, RunEncoder
from container_log.json_encoding import JsonEncoder
from container_log.run import STREAMS, Run

from shim_svc.bundle import Spec
from shim_svc.disk_writer import DiskWriter
from shim_svc.journald import JournaldFile
from shim_svc.log_file import FramedFile, LogFile


class ContainerLog:
    """The log of one container's init process.

    buffer: bytes that may wait to be written, None: the container waits a moment instead.
    """

    def __init__(self, driver: str, file: LogFile, encoder: Encoder, buffer: int | None) -> None:
        self.driver = driver
        self._encoder = encoder
        self._entries = Entries(encoder)
        self.writer = DiskWriter(file, notice=self._entries.missing, lines=encoder.lines, buffer=buffer)

    def write(self, stream: str, data: bytes) -> bool:
        """Take output of the process; False when no more should come until the writer has room."""
        entries = self._entries.of(stream, data)
        return self.writer.append(entries, self._entries.latest) if entries else True

    @property
    def readable(self) -> bool:
        """Whether it is in files, so that it can be replayed."""
        return self.driver != "journald"

    def pending(self) -> list[Run]:
        """What has been taken and may not be in the file yet, unfinished lines too."""
        runs = [entry for entry in self._encoder.entries(self.writer.queued()) if isinstance(entry, Run)]
        unfinished = [Run(self._entries.unfinished(stream), stream, "") for stream in STREAMS]
        return [*runs, *(run for run in unfinished if run.text)]

    def finish(self, stream: str) -> None:
        """The stream has ended: write what is left of its last line."""
        entry = self._entries.last(stream)
        if entry:
            self.writer.append(entry, self._entries.latest)

    def close(self) -> None:
        """Finish both streams and close the file."""
        for stream in STREAMS:
            self.finish(stream)
        self.writer.close()


def _json_file(spec: Spec) -> tuple[LogFile, Encoder]:
    file = LogFile(
        spec.log_path,
        max_size=spec.log_max_size,
        max_file=spec.log_max_file,
        compressed=spec.log_compress,
        indexed=True,
    )
    return file, JsonEncoder(spec.log_attrs)


def _local(spec: Spec) -> tuple[LogFile, Encoder]:
    file = FramedFile(
        spec.log_path,
        max_size=spec.log_max_size,
        max_file=spec.log_max_file,
        compressed=spec.log_compress,
        indexed=True,
    )
    return file, RunEncoder()


def _journald(spec: Spec) -> tuple[LogFile, Encoder]:
    return JournaldFile(spec.log_attrs), RunEncoder()


_DRIVERS: dict[str, Callable[[Spec], tuple[LogFile, Encoder]]] = {
    "json-file": _json_file,
    "local": _local,
    "journald": _journald,
}


def open_log(spec: Spec) -> ContainerLog | None:
    """The log that the annotations ask for, None for none; Internal when its file cannot be opened."""
    if spec.log_driver == "none":
        return None
    try:
        file, encoder = _DRIVERS[spec.log_driver](spec)
    except OSError as error:
        raise errdefs.Internal(f"failed to open log {spec.log_path}: {error.strerror}") from error
    return ContainerLog(spec.log_driver, file, encoder, spec.log_buffer)
