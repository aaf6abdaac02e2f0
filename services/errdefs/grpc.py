"""The table between our errors and gRPC status codes (google.rpc.Code), both ways.

The codes are those that containerd's clients expect: its errdefs maps each kind to the code of the same
name. Kinds that gRPC cannot tell apart travel with their name in the trailer (`kind`), so that our own client
gets the very class back.
"""

from __future__ import annotations

from collections.abc import Mapping

import errdefs as e

_STATUS: tuple[tuple[type[e.BuoyError], int], ...] = (
    (e.InvalidArgument, 3),
    (e.DeadlineExceeded, 4),
    (e.NotFound, 5),
    (e.AlreadyExists, 6),
    (e.PermissionDenied, 7),
    (e.ResourceExhausted, 8),
    (e.FailedPrecondition, 9),
    (e.Conflict, 9),
    (e.NotModified, 9),
    (e.OutOfRange, 11),
    (e.NotImplementedHere, 12),
    (e.Internal, 13),
    (e.Unavailable, 14),
    (e.DataLoss, 15),
    (e.Unauthenticated, 16),
    (e.Canceled, 1),
)
_BY_CODE: dict[int, type[e.BuoyError]] = {code: kind for kind, code in reversed(_STATUS)}
_BY_NAME: dict[str, type[e.BuoyError]] = {kind.__name__: kind for kind, _ in _STATUS}


def status_of(error: BaseException) -> int:
    """The gRPC status code of an error; 2 (UNKNOWN) for one outside the family."""
    for kind, code in _STATUS:
        if isinstance(error, kind):
            return code
    return 2


def error_from(
    code: int, message: str, *, kind: str = "", detail: Mapping[str, str] | None = None
) -> e.BuoyError:
    """The error behind a status code; `kind` is the class name that our own servers send along."""
    made = _BY_NAME.get(kind) or _BY_CODE.get(code, e.Internal)
    return made(message, detail=detail)
