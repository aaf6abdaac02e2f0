"""Which names containerd allows for namespaces, containers, execs and the parts of a topic
(pkg/identifiers)."""

from __future__ import annotations

import re

import errdefs

_LIMIT = 76  # characters
_PATTERN = r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


def validate(name: str, what: str = "") -> None:
    """Raise InvalidArgument unless `name` may be an identifier, and so a safe part of a path.

    `what` says in the message what the name is for.
    """
    lead = f"{what}: " if what else ""
    if not name:
        raise errdefs.InvalidArgument(f"{lead}identifier must not be empty: invalid argument")
    if len(name) > _LIMIT:
        raise errdefs.InvalidArgument(
            f'{lead}identifier "{name}" greater than maximum length ({_LIMIT} characters): invalid argument'
        )
    if not _IDENTIFIER.fullmatch(name):
        raise errdefs.InvalidArgument(f'{lead}identifier "{name}" must match {_PATTERN}: invalid argument')


def validate_topic(topic: str) -> None:
    """Raise InvalidArgument unless `topic` is `/part/part…` of identifiers."""
    lead = f'envelope topic "{topic}": '
    if not topic.startswith("/"):
        reason = "must start with '/'" if topic else "must not be empty"
        raise errdefs.InvalidArgument(f"{lead}{reason}: invalid argument")
    if topic == "/":
        raise errdefs.InvalidArgument(f"{lead}must have at least one component: invalid argument")
    for part in topic[1:].split("/"):
        validate(part, f'{lead}failed validation on component "{part}"')
