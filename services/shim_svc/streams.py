"""The standard streams of a container's processes: made for each, followed to their end, closed."""

from __future__ import annotations

import asyncio
import logging
import os
import time

from shim_svc.attach import Attachments
from shim_svc.logger import Logger
from shim_svc.logs import ContainerLog
from shim_svc.process import Process
from shim_svc.reaper import Reaper
from shim_svc.stdio import ProcessIO

log = logging.getLogger(__name__)

_WAIT = 2.0  # seconds that output may outlive its process, as Docker waits


class Streams:
    """One container's, in a namespace of containerd. sockets: the folder for console sockets. owner: uid and
    gid of the pipes. spill_folder: where what clients do not read goes on disk, if anywhere.
    """

    def __init__(
        self,
        container: str,
        *,
        namespace: str,
        reaper: Reaper,
        sockets: str,
        owner: tuple[int, int],
        spill_folder: str | None,
    ) -> None:
        self._container = container
        self._namespace = namespace
        self._reaper = reaper
        self._sockets = sockets
        self._owner = owner
        self._spill_folder = spill_folder
        self._consoles = 0

    def attachments(self, process: Process, log_file: ContainerLog | None) -> Attachments:
        """Who is attached to a process, and the log that it has."""
        return Attachments(
            terminal=process.stdio.terminal, log_file=log_file, spill_folder=self._spill_folder
        )

    def io_of(self, process: Process) -> ProcessIO:
        """The shim's ends of a process's streams."""
        self._consoles += 1
        name = f"{os.getpid():x}-{self._consoles:x}.c"  # short, and nobody else's: the shim is in it
        attachments = process.attachments
        logger = None
        if process.stdio.logger:
            logger = Logger(
                process.stdio.logger,
                process=process.exec_id or self._container,
                namespace=self._namespace,
                reaper=self._reaper,
            )
        return ProcessIO(
            process.stdio,
            console=f"{self._sockets}/{name}",
            sink_of=lambda stream, resume: _need(attachments).sink(stream, resume),
            owner=self._owner,
            logger=logger,
        )

    async def end(self, process: Process) -> None:
        """Let the clients go when the output is complete; what others keep open is not waited for long."""
        if process.io is not None:
            try:
                async with asyncio.timeout(_WAIT):
                    await process.io.ended.wait()
            except TimeoutError:
                log.info("output of %s is still open", process.exec_id or self._container)
        if process.attachments is not None:
            process.attachments.finish()

    async def settle(self, process: Process) -> None:
        """Wait for the end of the output as long as it may outlive the process."""
        if process.io is None or process.io.ended.is_set() or process.exit is None:
            return
        left = process.exit.at / 1e9 + _WAIT - time.time()
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    await process.io.ended.wait()
            except TimeoutError:
                log.info("output of %s is cut off", process.exec_id or self._container)


def _need(attachments: Attachments | None) -> Attachments:
    assert attachments is not None
    return attachments
