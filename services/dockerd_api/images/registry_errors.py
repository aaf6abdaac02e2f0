"""containerd's errors of a pull or push in the words and with the statuses of Docker's API.

(moby daemon/containerd/image_pull.go, registry_errors.go) A containerd that is not ours tells no more than
its text, so that the text is what is looked at.
"""

from __future__ import annotations

import errdefs

from dockerd_api.images.platforms import Platform
from dockerd_api.images.reference import Reference

_RESOLVING = "failed to resolve image: "


def of_pull(error: errdefs.BuoyError, name: Reference, platform: Platform) -> errdefs.BuoyError:
    """What to tell of a pull of `name` for a platform."""
    text = _resolving(error.message, name)
    lower = text.lower()
    if "schema 1" in lower or "manifest.v1+" in lower:
        return errdefs.InvalidArgument(
            "Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been removed. "
            f"Suggest the author of {name} to upgrade the image to the OCI Format or Docker Image manifest "
            "v2, schema 2. More information at https://docs.docker.com/go/deprecated-image-specs/"
        )
    if "authorization failed" in lower and "no basic auth credentials" not in lower:
        return errdefs.NotFound(
            f"pull access denied for {name.familiar_name}, repository does not exist or may require "
            "'docker login'",
            detail=error.detail,
        )
    if isinstance(error, errdefs.NotFound) and "platform" in lower:
        return errdefs.NotFound(
            f"no matching manifest for {platform} in the manifest list entries: {text}", detail=error.detail
        )
    return of_registry(type(error)(text, detail=error.detail))


def of_registry(error: errdefs.BuoyError) -> errdefs.BuoyError:
    """What to tell of what a registry refused. A host that is away is a failure of ours, as Docker has it."""
    told = errdefs.NotFound, errdefs.InvalidArgument, errdefs.Unauthenticated, errdefs.NotImplementedHere
    if isinstance(error, told):
        return error
    if isinstance(error, errdefs.PermissionDenied) and "authorization failed" not in error.message:
        return error
    return errdefs.Internal(error.message, detail=error.detail)


def _resolving(text: str, name: Reference) -> str:
    """containerd's transfer service says the same as its client, without the name."""
    if not text.startswith(_RESOLVING):
        return text
    return f'failed to resolve reference "{name}": {text.removeprefix(_RESOLVING)}'
