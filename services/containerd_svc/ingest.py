"""One ingest: a blob being written, in a folder of its own, resumable after the death of the process.

The functions here block; the content store runs them in its threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import errdefs

from containerd_svc import labels

if TYPE_CHECKING:
    from hashlib import _Hash

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_READ = 1024 * 1024


def check_digest(digest: str) -> str:
    """The digest itself. Raises InvalidArgument unless it is one that we can verify; it also names a file."""
    if not _DIGEST.fullmatch(digest):
        raise errdefs.InvalidArgument(f'"{digest[:200]}" failed validation: invalid digest')
    return digest


def ingest_name(namespace: str, ref: str) -> str:
    """The name of an ingest's folder: refs may hold any character and be long."""
    return hashlib.sha256(f"{namespace}\0{ref}".encode()).hexdigest()


class IngestFolder:
    """The folder of the ingest `ref` of a namespace, whether it exists or not."""

    def __init__(self, parent: Path, namespace: str, ref: str) -> None:
        self.namespace = namespace
        self.ref = ref
        self.path = parent / ingest_name(namespace, ref)
        self.data = self.path / "data"

    @classmethod
    def all_in(cls, parent: Path) -> Iterator[IngestFolder]:
        """Every ingest whose record can be read."""
        for entry in sorted(parent.iterdir()):
            with contextlib.suppress(OSError, ValueError, KeyError):
                record = json.loads((entry / "info.json").read_text())
                yield cls(parent, record["namespace"], record["ref"])

    def make(self, total: int, expected: str) -> None:
        """Begin it: folder, record, empty file."""
        self.remove()
        self.path.mkdir(mode=0o700)
        record = {
            "namespace": self.namespace,
            "ref": self.ref,
            "total": total,
            "expected": expected,
            "started_at": labels.now(),
        }
        temporary = self.path / "info.json.new"
        temporary.write_text(json.dumps(record))
        temporary.rename(self.path / "info.json")
        os.close(os.open(self.data, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def stored(self) -> dict[str, Any] | None:
        """ref, offset, total, expected, started_at, updated_at (nanoseconds); None without an ingest."""
        try:
            record = json.loads((self.path / "info.json").read_text())
            facts = self.data.stat()
            return {
                "ref": self.ref,
                "offset": facts.st_size,
                "total": int(record["total"]),
                "expected": str(record["expected"]),
                "started_at": int(record["started_at"]),
                "updated_at": facts.st_mtime_ns,
            }
        except (OSError, ValueError, KeyError):
            return None

    def remove(self) -> bool:
        """Remove it; False when it was not there."""
        try:
            shutil.rmtree(self.path)
        except FileNotFoundError:
            return False
        return True


class Ingest:
    """An ingest opened by its one writer. `offset` is how many bytes it has."""

    # Set by the store: runs a blocking function in one of its threads.
    run: Callable[[Callable[[], Any]], Awaitable[Any]]

    def __init__(self, folder: IngestFolder, stored: dict[str, Any], shared: Path | None) -> None:
        self.folder = folder
        self.ref: str = stored["ref"]
        self.offset: int = stored["offset"]
        self.total: int = stored["total"]
        self.expected: str = stored["expected"]
        self.started_at: int = stored["started_at"]
        self.updated_at: int = stored["updated_at"]
        # A blob that another namespace has: committing needs no byte of it again.
        self._shared = shared
        self._fd = -1
        self._hash: _Hash

    @classmethod
    def open(cls, folder: IngestFolder, total: int, expected: str, shared: Path | None) -> Ingest:
        """Begin or resume; a resumed one is hashed again up to its offset. Raises FailedPrecondition for
        another total than it was begun with.
        """
        stored = folder.stored()
        if stored is None or shared is not None:
            folder.make(total, expected)
            stored = folder.stored()
            assert stored is not None
        if total and stored["total"] and total != stored["total"]:
            raise errdefs.FailedPrecondition(
                f"provided total differs from status: {total} != {stored['total']}: failed precondition"
            )
        ingest = cls(folder, stored, shared)
        ingest._hash = hashlib.new(expected.partition(":")[0] or "sha256")
        if shared is not None:
            ingest.offset = ingest.total = shared.stat().st_size
            return ingest
        ingest._fd = os.open(folder.data, os.O_RDWR | os.O_CLOEXEC)
        while data := os.read(ingest._fd, _READ):
            ingest._hash.update(data)
        return ingest

    @property
    def digest(self) -> str:
        """The digest of what is there so far."""
        return self.expected if self._shared else f"{self._hash.name}:{self._hash.hexdigest()}"

    async def write(self, data: bytes) -> None:
        """Append; on a full disk ResourceExhausted, and the offset says what was kept."""
        await self.run(lambda: self._write(data))

    async def restart(self) -> None:
        """Throw away what is there and begin at offset 0."""
        await self.run(self._restart)

    def _write(self, data: bytes) -> None:
        if self._shared is not None:
            self._unshare()
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                self._hash.update(view[:written])
                self.offset += written
                view = view[written:]
        except OSError as error:
            raise errdefs.ResourceExhausted(f"cannot write content {self.ref}: {error.strerror}") from error
        self.updated_at = labels.now()

    def _restart(self) -> None:
        if self._shared is not None:
            self._shared = None
            self._fd = os.open(self.folder.data, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.new(self._hash.name)
        self.offset = 0

    def _unshare(self) -> None:
        """Writing behind a shared blob makes a copy of it."""
        source = self._shared
        assert source is not None
        self._restart()
        with source.open("rb") as file:
            while data := file.read(_READ):
                self._write(data)

    def seal(self, size: int, expected: str) -> tuple[str, int]:
        """Verify and sync; the digest and size of the whole. Raises FailedPrecondition when they differ."""
        if size and size != self.offset:
            raise errdefs.FailedPrecondition(
                f'"{self.ref}" failed size validation: {self.offset} != {size}: failed precondition'
            )
        if expected and check_digest(expected).partition(":")[0] != self._hash.name and self._shared is None:
            self._rehash(expected.partition(":")[0])
        if expected and expected != self.digest:
            raise errdefs.FailedPrecondition(
                f"unexpected commit digest {self.digest}, expected {expected}: failed precondition"
            )
        if self._shared is None:
            os.fsync(self._fd)
        return self.digest, self.offset

    def _rehash(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm)
        os.lseek(self._fd, 0, os.SEEK_SET)
        while data := os.read(self._fd, _READ):
            self._hash.update(data)

    def publish(self, target: Path) -> None:
        """Put the sealed file in its place, durably. A file that is there has the same digest and stays."""
        if self._shared is None and not target.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            os.rename(self.folder.data, target)
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        elif not target.exists():
            raise errdefs.NotFound(f"content digest {self.digest}: not found")

    def close(self) -> None:
        """Close the file; what is not committed stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._shared is not None and self.folder.stored() is not None:
            self.folder.remove()
