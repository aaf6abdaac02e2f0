"""Who a user is at a registry: what the X-Registry-Auth header and the body of POST /auth say.

(API 1.50: AuthConfig; moby api/types/registry/authconfig.go)
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import errdefs

from dockerd_api.registries.settings import HUB, HUB_INDEX, HUB_REGISTRY

_FIELDS = ("username", "password", "auth", "email", "serveraddress", "identitytoken", "registrytoken")
_LONGEST = 64 * 1024  # bytes of a header


@dataclass(frozen=True)
class Credentials:
    """Name and password, or an identity token (to be exchanged for others), or a token for the registry.

    `server` is where they are good for, as the user wrote it: host, URL, or empty.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""

    def host(self, domain: str) -> str:
        """The host that may get them, for an image of the registry `domain`: as it is spoken to."""
        host = hostname(self.server) or domain
        return HUB_REGISTRY if host in (HUB, HUB_INDEX) else host

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)


def of_header(value: str) -> Credentials:
    """The header's credentials. One that is malformed counts as none, as Docker has it."""
    if not value or len(value) > _LONGEST:
        return Credentials()
    try:
        text = base64.b64decode(value, altchars=b"-_", validate=True)
        return of_document(json.loads(text))
    except (binascii.Error, ValueError, RecursionError, errdefs.InvalidArgument):
        return Credentials()


def of_document(document: Any) -> Credentials:
    """An AuthConfig. Raises InvalidArgument for fields of the wrong type."""
    if not isinstance(document, Mapping):
        raise errdefs.InvalidArgument(f"{_kind(document)} is no AuthConfig")
    found = dict.fromkeys(_FIELDS, "")
    for name, value in document.items():
        if name.lower() not in found or value is None:
            continue
        if not isinstance(value, str):
            raise errdefs.InvalidArgument(
                f"json: cannot unmarshal {_kind(value)} into Go struct field "
                f"AuthConfig.{name.lower()} of type string"
            )
        found[name.lower()] = value
    if found["auth"] and not found["username"]:
        found["username"], found["password"] = _pair(found["auth"])
    return Credentials(
        found["username"],
        found["password"],
        found["identitytoken"],
        found["registrytoken"],
        found["serveraddress"],
    )


def hostname(address: str) -> str:
    """Host and port of an address with or without scheme and path."""
    for scheme in ("https://", "http://"):
        address = address.removeprefix(scheme)
    return address.partition("/")[0]


def _pair(auth: str) -> tuple[str, str]:
    """`auth` is base64 of name:password, as it stands in the client's config.json."""
    try:
        name, _, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, password.rstrip("\0")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
