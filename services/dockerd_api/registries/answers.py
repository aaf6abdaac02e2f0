"""What went wrong at a registry, in the words of Docker's own client of registries.

(distribution registry/client/errors.go, registry/api/errcode; Go's net and net/http)
"""

from __future__ import annotations

import http
import json
import os
import socket
import ssl

import errdefs
import httpx
from http_client.tls import causes, is_no_tls, refused_certificate

_KINDS: dict[str, type[errdefs.BuoyError]] = {
    "UNAUTHORIZED": errdefs.Unauthenticated,
    "DENIED": errdefs.PermissionDenied,
    "MANIFEST_UNKNOWN": errdefs.NotFound,
    "NAME_UNKNOWN": errdefs.NotFound,
    "BLOB_UNKNOWN": errdefs.NotFound,
    "MANIFEST_INVALID": errdefs.InvalidArgument,
    "NAME_INVALID": errdefs.InvalidArgument,
    "TAG_INVALID": errdefs.InvalidArgument,
    "DIGEST_INVALID": errdefs.InvalidArgument,
    "UNAVAILABLE": errdefs.Unavailable,
}
_BY_STATUS = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}
_SAID = {"UNAUTHORIZED": "authentication required", "DENIED": "requested access to the resource is denied"}
_LONGEST = 1000  # characters of a registry's words in ours


def of_answer(status: int, headers: httpx.Headers, body: bytes) -> errdefs.BuoyError:
    """The error of an answer whose status is none of success. `detail` has `code`, the registry's word."""
    if not 400 <= status < 500:
        return errdefs.Internal(f"received unexpected HTTP status: {status_text(status)}")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    text = printable(body.decode(errors="replace"))
    if kind not in ("application/json", "application/vnd.api+json"):
        return _made(_BY_STATUS.get(status, "UNKNOWN"), text)
    try:
        document = json.loads(body)
        if isinstance(document.get("details"), str) and document["details"]:
            return _made(_BY_STATUS.get(status, "UNKNOWN"), printable(document["details"]))
        errors = [(str(each.get("code", "")), str(each.get("message") or "")) for each in document["errors"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        errors = []
    if not errors:
        if status == 401:
            return _made("UNAUTHORIZED", "")
        return errdefs.Internal(
            f"error parsing HTTP {status} response body: no error details found in HTTP response body: "
            f"{json.dumps(text)}"
        )
    made = [_made(code, printable(message)) for code, message in errors]
    if len(made) == 1:
        return made[0]
    words = "".join(f"{each.message}\n" for each in made)
    return type(made[0])(f"errors:\n{words}", detail=made[0].detail)


def of_failure(error: httpx.HTTPError, method: str, url: str) -> errdefs.Internal:
    """The error of a request that got no answer."""
    return errdefs.Internal(f'{method.capitalize()} "{url}": {_reason(error, httpx.URL(url))}')


def status_text(status: int) -> str:
    """`404 Not Found`."""
    known = status in http.HTTPStatus.__members__.values()
    return f"{status} {http.HTTPStatus(status).phrase}" if known else str(status)


def printable(text: str) -> str:
    """What a registry says, as far as it can be shown."""
    return "".join(sign for sign in text.strip() if sign.isprintable())[:_LONGEST]


def _made(code: str, message: str) -> errdefs.BuoyError:
    kind = _KINDS.get(code, errdefs.Internal)
    if code not in _KINDS and code not in ("TOOMANYREQUESTS", "UNSUPPORTED"):
        code = "UNKNOWN"
    words = message or _SAID.get(code, "unknown error")
    return kind(f"{code.lower().replace('_', ' ')}: {words}", detail={"code": code})


def _reason(error: httpx.HTTPError, url: httpx.URL) -> str:
    address = f"{url.host}:{url.port or (443 if url.scheme == 'https' else 80)}"
    for cause in causes(error):
        if isinstance(cause, socket.gaierror):
            return f"dial tcp: lookup {url.host}: no such host"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"tls: failed to verify certificate: x509: {refused_certificate(cause, url.host)}"
        if isinstance(cause, ssl.SSLError):
            if is_no_tls(cause):
                return "http: server gave HTTP response to HTTPS client"
            return f"remote error: tls: {(cause.reason or str(cause)).lower().replace('_', ' ')}"
        if isinstance(cause, OSError) and cause.errno:  # an event loop has words of its own for some
            return f"dial tcp {address}: connect: {os.strerror(cause.errno).lower()}"
    if isinstance(error, httpx.ConnectTimeout):
        return f"dial tcp {address}: i/o timeout"
    if isinstance(error, httpx.TimeoutException):
        return "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    return printable(str(error)) or "EOF"
