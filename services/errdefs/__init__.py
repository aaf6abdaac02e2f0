"""The one family of errors that crosses a room's wall.

Raise or log, never both: the edge of a process (HTTP, gRPC, ttrpc, command line) logs once and renders the
kind with one of the two tables in this package, `errdefs.grpc` and `errdefs.http`. `message` is written for
the user who sees it; `detail` holds machine-readable facts that travel in the gRPC trailer.
"""

from __future__ import annotations

from collections.abc import Mapping


class BuoyError(Exception):
    """Base of the family. `message` is one line for a user; `detail` maps short keys to strings."""

    def __init__(self, message: str, *, detail: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail: dict[str, str] = dict(detail or {})


class InvalidArgument(BuoyError):
    """The caller's input is wrong, whatever the state of the engine."""


class NotFound(BuoyError):
    """What the caller names does not exist."""


class AlreadyExists(BuoyError):
    """What the caller wants to make exists."""


class Conflict(BuoyError):
    """The input is right but the state of the object forbids it (Docker's 409)."""


class NotModified(BuoyError):
    """The object is already as the caller wants it (Docker's 304)."""


class FailedPrecondition(BuoyError):
    """The state of the object forbids it (containerd's word; Docker's edge says which status)."""


class PermissionDenied(BuoyError):
    """The caller may not do this."""


class Unauthenticated(BuoyError):
    """The caller did not say, or not prove, who it is."""


class ResourceExhausted(BuoyError):
    """A limit is reached: disk, descriptors, addresses, size of input."""


class NotImplementedHere(BuoyError):
    """Not built. Listed as missing in docs/features.md."""


class Unavailable(BuoyError):
    """Another process or the host does not answer now; trying again may help."""


class DeadlineExceeded(BuoyError):
    """A call had a deadline, and it passed."""


class Canceled(BuoyError):
    """The caller went away or took its request back."""


class OutOfRange(BuoyError):
    """An offset lies beyond what exists."""


class DataLoss(BuoyError):
    """Stored data is damaged."""


class Internal(BuoyError):
    """A fault of ours or of the kernel that the caller cannot mend."""
