"""The table from our errors to HTTP status codes, as Docker's clients know them (moby httpstatus)."""

from __future__ import annotations

import errdefs as e

_STATUS: tuple[tuple[type[e.BuoyError], int], ...] = (
    (e.InvalidArgument, 400),
    (e.OutOfRange, 400),
    (e.Unauthenticated, 401),
    (e.PermissionDenied, 403),
    (e.NotFound, 404),
    (e.AlreadyExists, 409),
    (e.Conflict, 409),
    (e.FailedPrecondition, 409),
    (e.NotModified, 304),
    (e.NotImplementedHere, 501),
    (e.Unavailable, 503),
    (e.DeadlineExceeded, 500),
    (e.Canceled, 499),
    (e.ResourceExhausted, 500),
    (e.DataLoss, 500),
    (e.Internal, 500),
)


def status_of(error: BaseException) -> int:
    """The HTTP status code of an error; 500 for one outside the family."""
    for kind, code in _STATUS:
        if isinstance(error, kind):
            return code
    return 500
