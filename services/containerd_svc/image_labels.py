"""Labels of an image never control its containers (CVE-2026-53488).

Clients copy the labels of an image's configuration into the labels of the container that they make of it
(containerd's WithImageConfigLabels). Among a container's labels are some that containerd acts on: they have a
process started again by root, and its output given to a program. Who made the image would choose both.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import errdefs

from containerd_svc.containers import Container
from containerd_svc.content import ContentStore
from containerd_svc.images import ImageStore
from containerd_svc.transfer.descriptors import INDEXES, MANIFESTS, Descriptor, children, document

log = logging.getLogger(__name__)

_CONTROL = ("containerd.io/", "dev.buoy.")


async def without_control_labels(
    images: ImageStore, content: ContentStore, namespace: str, container: Container
) -> Container:
    """The container without the control labels that it has from its image.

    A control label that the configuration does not have, or has with another value, is the client's own;
    whose it is when both have it cannot be told.
    """
    control = {name: value for name, value in container.labels.items() if name.startswith(_CONTROL)}
    if not control or not container.image:
        return container
    try:
        target = (await images.get(namespace, container.image)).target
    except errdefs.NotFound:
        return container
    descriptor = {"mediaType": target.media_type, "digest": target.digest}
    taken = await _labels(content, namespace, descriptor)
    refused = {name for name, value in control.items() if value in taken.get(name, ())}
    if not refused:
        return container
    log.warning(
        "container %s: the image %s has no say in %s",
        container.id,
        container.image,
        ", ".join(sorted(refused)),
    )
    kept = {name: value for name, value in container.labels.items() if name not in refused}
    return dataclasses.replace(container, labels=kept)


async def _labels(
    content: ContentStore, namespace: str, descriptor: Descriptor, depth: int = 3
) -> Mapping[str, set[str]]:
    """The labels of the configurations below a descriptor, of all platforms that are there."""
    found: dict[str, set[str]] = {}
    try:
        kind = descriptor.get("mediaType")
        below = await children(content, namespace, descriptor) if depth else []
        if kind in MANIFESTS:
            settings: Any = (await document(content, namespace, below[0][1])).get("config")
            labels = settings.get("Labels") if isinstance(settings, dict) else None
            for name, value in labels.items() if isinstance(labels, dict) else ():
                found.setdefault(name, set()).add(str(value))
        elif kind in INDEXES:
            for _, each in below:
                for name, values in (await _labels(content, namespace, each, depth - 1)).items():
                    found.setdefault(name, set()).update(values)
    except (errdefs.NotFound, errdefs.InvalidArgument):  # no client could read it either
        pass
    return found
