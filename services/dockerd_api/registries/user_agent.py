"""How this daemon introduces itself to registries: as moby's dockerversion/useragent.go does."""

from __future__ import annotations

import functools
import platform
import re

from dockerd_api.config import VERSION

_LONGEST = 512  # characters of a client's own name


def user_agent(client: str) -> str:
    """The User-Agent header for a work that a client asked for, who said to be `client`."""
    if not client:
        return _daemon()
    printable = "".join(sign for sign in client if sign.isascii() and sign.isprintable())[:_LONGEST]
    escaped = re.sub(r"([();\\])", r"\\\1", printable)
    return f"{_daemon()} UpstreamClient({escaped})"


@functools.cache
def _daemon() -> str:
    kernel, machine = platform.release(), platform.machine()
    return f"docker/{VERSION} kernel/{kernel} os/linux arch/{machine}"
