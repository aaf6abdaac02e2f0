"""What every handler takes from the call's metadata."""

from __future__ import annotations

from rpc.grpc import current_call

from containerd_svc import identifiers

_LEASE = "containerd-lease"


def namespace() -> str:
    """The caller's namespace. Raises FailedPrecondition without one, InvalidArgument for a bad one."""
    name = current_call().namespace
    identifiers.validate(name, "namespace validation")
    return name


def lease() -> str:
    """The lease that is to hold what this call makes; empty for none."""
    value = current_call().metadata.get(_LEASE, "")
    return value if isinstance(value, str) else ""
