"""Knowing when files in a folder change: one inotify(7) descriptor for all followers of logs."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x002, 0x040, 0x080, 0x100, 0x200
_EVENT = struct.Struct("iIII")
#: Seconds after which a follower looks by itself: the kernel may have had no watch to give, or the folder is
#: not there yet.
LOOK = 1.0

_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """`watching` gives an event that is set on each change in a folder. Runs on the event loop's thread."""

    def __init__(self) -> None:
        self._fd = -1
        self._listeners: dict[int, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def watching(self, folder: Path) -> Iterator[asyncio.Event]:
        """Set when something in the folder changes, until the context ends.

        Where the kernel gives no watch it is never set.
        """
        changed = asyncio.Event()
        watch = self._add(folder)
        if watch < 0:
            yield changed
            return
        self._listeners.setdefault(watch, set()).add(changed)
        try:
            yield changed
        finally:
            listeners = self._listeners.get(watch, set())
            listeners.discard(changed)
            if not listeners and self._listeners.pop(watch, None) is not None:
                _libc.inotify_rm_watch(self._fd, watch)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _add(self, folder: Path) -> int:
        if self._fd < 0:
            self._fd = _libc.inotify_init1(_NONBLOCK_CLOEXEC)
            if self._fd < 0:
                return -1
            asyncio.get_running_loop().add_reader(self._fd, self._read)
        events = _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
        return int(_libc.inotify_add_watch(self._fd, os.fsencode(folder), events))

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 64 * 1024)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            for changed in self._listeners.get(watch, ()):
                changed.set()
            if mask & 0x8000:  # IN_IGNORED: the folder is gone, and its number may come to mean another
                self._listeners.pop(watch, None)
