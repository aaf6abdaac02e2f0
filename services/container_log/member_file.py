"""One file of gzip members, opened for reading: see `members`.

Offsets are those of the whole text, so that they hold when the file has been compressed anew.
"""

from __future__ import annotations

import os
import zlib

from container_log import members
from container_log.json_decoding import decode
from container_log.json_file import MARK_BYTES
from container_log.members import JSON_LINES, SIGNATURE, Member, describe, pack_run, unpack
from container_log.run import Damage, Run
from container_log.times import timestamp

CHUNK = 512 * 1024
"""Bytes of the file that one read looks at, unless one member is longer."""
_LONGEST = 4 << 20  # bytes of a member at most


class MemberFile:
    """Takes the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self.bytes_read = 0
        """For those who measure."""
        self.since = 0
        """Members that have nothing of this time or later are passed over unopened."""
        self.mark = 0
        """A sum of the first bytes, 0 while there are none: inodes are used again."""
        self._at, self._offset = 0, 0  # a place in the file, and the text's offset there
        self.refresh_mark()

    def refresh_mark(self) -> None:
        """Look at the first member, when there was none before."""
        if self.mark:
            return
        data = self._pread(self._longest_at(0), 0)
        first = describe(data)
        if first is None or first.size > len(data):
            return
        self.inode = first.origin or self.inode
        # What stays the same when members are merged, or are what a file of lines was compressed to.
        if first.runs:
            self.mark = zlib.crc32(pack_run(first.runs[0])) or 1
        else:
            known = (unpack(data, 0, first) or b"")[:MARK_BYTES]
            self.mark = zlib.crc32(known) if len(known) == MARK_BYTES else 0

    @property
    def size(self) -> int:
        """Bytes in it now."""
        return os.fstat(self.fd).st_size

    def _pread(self, count: int, at: int) -> bytes:
        data = os.pread(self.fd, count, at)
        self.bytes_read += len(data)
        return data

    def _longest_at(self, at: int) -> int:
        """How many bytes the member there has; those of a description when it cannot be told."""
        head = self._pread(members.SMALLEST, at)
        if not head.startswith(SIGNATURE):
            return 1 << 16
        more = int.from_bytes(head[10:12], "little") + 12
        found = describe(self._pread(more, at))
        return min(found.size, _LONGEST) if found is not None else 1 << 16

    def cut(self, offset: int) -> bool:
        """Whether the file has become shorter than it was when that offset was read."""
        return offset == self._offset and self.size < self._at

    def place(self, offset: int) -> int:
        """Where in the file that offset is."""
        if offset != self._offset:
            self._locate(offset)
        return self._at

    def skip_to(self, at: int, offset: int) -> int:
        """The offset of the text at a place of the file where a member begins; `offset` when none does."""
        found = describe(self._pread(1 << 16, at))
        if found is None or found.start < offset:
            return offset
        self._at, self._offset = at, found.start
        return self._offset

    def read(self, offset: int, limit: int | None = None) -> tuple[list[Run | Damage], int]:
        """Some of the entries from an offset on, none at the end, and the offset behind them.

        limit: bytes of the file behind which nothing is read.
        """
        if offset != self._offset:
            self._locate(offset)
        size = self.size if limit is None else min(limit, self.size)
        data = self._pread(max(0, min(CHUNK, size - self._at)), self._at)
        first = describe(data)
        if first is not None and len(data) < first.size <= min(_LONGEST, size - self._at):
            data = self._pread(first.size, self._at)
        entries: list[Run | Damage] = []
        at = 0
        while at < len(data):
            member = describe(data, at)
            if member is None or at + member.size > len(data):
                behind = self._next_member(data, at + 1)
                if behind < 0:
                    behind = self._search(at + 1, size) if not at else -1
                if behind < 0:
                    break
                entries.append(Damage(behind - at))
                at = behind
                continue
            old = 0 < member.latest < self.since
            text = b"" if old else unpack(data, at, member)
            at += member.size
            if text is None:
                entries.append(Damage(member.size))
            elif not old:
                entries += _entries(member, text, max(0, offset - member.start))
            self._offset = offset = member.end
        self._at += at
        return entries, self._offset

    def _next_member(self, data: bytes, at: int) -> int:
        """Where in `data` the next member begins, -1 for nowhere."""
        while (at := data.find(SIGNATURE, at)) >= 0:
            if describe(data, at) is not None:
                return at
            at += 1
        return -1

    def _search(self, behind: int, size: int) -> int:
        """As `_next_member`, in the whole rest of the file; from the place where it stands."""
        at = self._at + behind
        while at < size:
            data = self._pread(min(CHUNK, size - at), at)
            found = self._next_member(data, 0)
            if found >= 0:
                return at + found - self._at
            if len(data) < CHUNK:
                return -1
            at += len(data) - (1 << 16)
        return -1

    def _locate(self, offset: int) -> None:
        """Stand at the member that holds this offset of the text, by the descriptions alone."""
        self._at = self._offset = 0
        data, base, size = b"", 0, self.size
        while self._at < size:
            at = self._at - base
            member = describe(data, at)
            if member is None and (not data or at + (1 << 16) > len(data)):
                data, base = self._pread(CHUNK, self._at), self._at
                member = describe(data)
                at = 0
            if member is None:
                behind = self._next_member(data, at + 1)
                if behind < 0:
                    return
                self._at = base + behind
                continue
            if self._at + member.size > size or member.start > offset:
                return
            if offset < member.end:
                self._offset = offset
                return
            self._at += member.size
            self._offset = member.end

    def torn(self, offset: int) -> int:
        """How many bytes there are behind an offset at which no whole member begins any more."""
        if offset != self._offset:
            self._locate(offset)
        return max(0, self.size - self._at)

    def tail(self, count: int) -> tuple[int, int]:
        """How many of the last `count` entries are here, and the offset of the first of them."""
        found, end = 0, self.size
        at = self._before(end)
        if at < 0:
            self._at = self._offset = 0
            return 0, 0
        while True:
            data = self._pread(min(end - at, _LONGEST), at)
            member = describe(data)
            assert member is not None
            if member.size <= len(data):
                if count <= 0:
                    self._at, self._offset = at + member.size, member.end
                    return 0, member.end
                if found + member.lines >= count:
                    text = unpack(data, 0, member) or b""
                    self._at = at
                    self._offset = member.start + _nth_from_end(member, text, count - found)
                    return count, self._offset
                found += member.lines
            before = self._before(at)
            if before < 0:
                self._at, self._offset = at, member.start
                return found, member.start
            at, end = before, at

    def _before(self, end: int) -> int:
        """Where the last member before `end` begins, -1 when there is none.

        It ends there, unless something is torn: a text may hold what looks like a member.
        """
        found, reach = -1, end
        while reach > 0 and (found < 0 or end - reach < _LONGEST):
            start = max(0, reach - (1 << 16))
            # What a description needs of the bytes behind, and no signature is cut in two.
            data = self._pread(min(end, reach + (1 << 16)) - start, start)
            place = reach - start + len(SIGNATURE)
            while (place := data.rfind(SIGNATURE, 0, place)) >= 0:
                member = describe(data, place)
                if member is not None:
                    if start + place + member.size == end:
                        return start + place
                    found = max(found, start + place)
                place += len(SIGNATURE) - 1
            reach = start
        return found

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def _entries(member: Member, text: bytes, skip: int) -> list[Run | Damage]:
    """The entries of a member's text behind its first `skip` bytes."""
    if member.kind == JSON_LINES:
        return list(decode(text[skip:]))
    found: list[Run | Damage] = []
    at = 0
    for run in member.runs:
        end = at + run.length
        if end > skip:
            found.append(Run(text[max(at, skip) : end], run.stream, timestamp(run.time).decode()))
        at = end
    return found


def _nth_from_end(member: Member, text: bytes, count: int) -> int:
    """Where in a member's text the last `count` entries begin."""
    if member.kind == JSON_LINES:
        return _lines_from_end(text, count)
    end = len(text)
    for run in reversed(member.runs):
        start = end - run.length
        here = members.lines_of(run, text[start:end])
        if here >= count:
            return start if here == count else start + _lines_from_end(text[start:end], count)
        count -= here
        end = start
    return 0


def _lines_from_end(text: bytes, count: int) -> int:
    place = len(text) - 1
    for _ in range(count):
        place = text.rfind(b"\n", 0, place)
        if place < 0:
            return 0
    return place + 1
