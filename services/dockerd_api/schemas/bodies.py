"""Reading a request: its JSON body and its query, with Docker's texts for what is wrong (moby
api/server/httputils).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import errdefs
from fastapi import Request

from dockerd_api.config import API_VERSION

_MOST = 16 << 20  # bytes of a JSON body
_VERSION = re.compile(rb"/v([0-9]{1,4})\.([0-9]{1,4})(?=/|\Z)")


def api_version(request: Request) -> tuple[int, int]:
    """The API version in the path as it was sent; the newest for a path without one."""
    found = _VERSION.match(request.scope.get("raw_path") or b"")
    return (int(found[1]), int(found[2])) if found else API_VERSION


async def json_body(request: Request, *, optional: bool = False) -> Any:
    """The body's one JSON value; None for an empty body where that is allowed."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST:
            raise errdefs.InvalidArgument("invalid JSON: the request's body is too large")
    if kind not in ("application/json", "text/json") and (kind or body):
        raise errdefs.InvalidArgument(f"unsupported Content-Type header ({kind}): must be 'application/json'")
    if not body.strip():
        if optional:
            return None
        raise errdefs.InvalidArgument("invalid JSON: got EOF while reading request body")
    return parse_json(bytes(body))


def parse_json(body: bytes) -> Any:
    """One JSON value; InvalidArgument with the words of Go's decoder."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body.decode(errors="replace")
    try:
        value, end = json.JSONDecoder(parse_constant=_no_constant).raw_decode(text.lstrip(" \t\r\n"))
    except json.JSONDecodeError as error:
        raise errdefs.InvalidArgument(f"invalid JSON: {_go_words(error)}") from None
    except RecursionError:
        raise errdefs.InvalidArgument("invalid JSON: exceeded max depth") from None
    if text.lstrip(" \t\r\n")[end:].strip():
        raise errdefs.InvalidArgument("unexpected content after JSON")
    return value


def _no_constant(name: str) -> Any:
    raise errdefs.InvalidArgument(
        f"invalid JSON: invalid character '{name[0]}' looking for beginning of value"
    )


_GO_WORDS = {
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Expecting value": "looking for beginning of value",
    "Expecting ':' delimiter": "after object key",
    "Invalid control character at": "in string literal",
    "Invalid \\escape": "in string escape code",
}


def _go_words(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc) or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    character = error.doc[error.pos]
    words = _GO_WORDS.get(error.msg.rstrip(": "))
    if words is None:
        before = error.doc[: error.pos]
        in_object = before.count("{") - before.count("}") > 0 and before.rfind("{") > before.rfind("[")
        words = "after object key:value pair" if in_object else "after array element"
    return f"invalid character '{character}' {words}"


def flag(query: Mapping[str, str], name: str) -> bool:
    """Docker's reading of a boolean in a query."""
    return query.get(name, "").strip().lower() not in ("", "0", "no", "false", "none")


def number(query: Mapping[str, str], name: str) -> int | None:
    """A whole number in a query, None when absent; InvalidArgument with Go's words."""
    text = query.get(name, "")
    if not text:
        return None
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise errdefs.InvalidArgument(f'strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


def console_size(document: Any) -> tuple[int, int]:
    """Height and width of a terminal from the query of a resize; both must be there."""
    sizes = []
    for name in ("h", "w"):
        text = document.get(name, "")
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > 65535:
            raise errdefs.InvalidArgument(f'strconv.Atoi: parsing "{text}": invalid syntax')
        sizes.append(int(text))
    return sizes[0], sizes[1]
