"""What went wrong at a registry, as errors in the words of containerd's client, from which Docker's follow.

`detail` says what a caller may want to tell apart: `registry` is `denied`, `not-found`, `rate-limited`,
`away` (no connection, or one that broke), `unknown-host` or `failed` (5xx and the like); a rate limit has
`retry-after`, `ratelimit-limit` and `ratelimit-remaining` as the registry sent them.
"""

from __future__ import annotations

import http
import json
import socket
import ssl

import errdefs
import httpx
from http_client.tls import causes, refused_certificate

# How a connection fails: httpx lets through what TLS 1.3 tells after the handshake.
FAILURES = (httpx.HTTPError, OSError)
LARGEST_ERROR = 64 * 1024  # bytes of a body that explains an error
_DENIED = "access denied, repository does not exist or may require authorization"
_LIMITS = ("retry-after", "ratelimit-limit", "ratelimit-remaining")


def denied(why: str, scopes: frozenset[str]) -> errdefs.PermissionDenied:
    """The registry wants other credentials for these scopes, or none will do."""
    action = "push" if any("push" in scope.rpartition(":")[2] for scope in scopes) else "pull"
    return errdefs.PermissionDenied(f"{action} {_DENIED}: {why}", detail={"registry": "denied"})


def not_found(what: str) -> errdefs.NotFound:
    return errdefs.NotFound(f"{what}: not found", detail={"registry": "not-found"})


def of_answer(response: httpx.Response, body: bytes, what: str) -> errdefs.BuoyError:
    """The error of an answer that is none of those expected; `what` names the thing that was asked for."""
    status = response.status_code
    said = server_message(body)
    if status == 404:
        return not_found(what)
    message = unexpected(response)
    if status == 429:
        limits = {name: response.headers[name] for name in _LIMITS if name in response.headers}
        told = "".join(f", {name}: {value}" for name, value in limits.items())
        return errdefs.ResourceExhausted(
            f"{message}{server_said(said or 'toomanyrequests: too many requests')}{told}",
            detail={"registry": "rate-limited", **limits},
        )
    if status in (401, 403):
        return errdefs.PermissionDenied(f"{message}{server_said(said)}", detail={"registry": "denied"})
    if status >= 500:
        return errdefs.Unavailable(f"{message}{server_said(said)}", detail={"registry": "failed"})
    return errdefs.InvalidArgument(f"{message}{server_said(said)}", detail={"registry": "failed"})


def unexpected(response: httpx.Response) -> str:
    """What containerd says of a status that it did not expect."""
    status, request = response.status_code, response.request
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "unknown status"
    return f"unexpected status from {request.method} request to {_shown(request.url)}: {status} {phrase}"


def of_failure(error: Exception, request: httpx.Request) -> errdefs.Unavailable:
    """The error of a request that got no answer, or lost it on the way."""
    method = request.method.capitalize()
    why, kind = _reason(error, request.url)
    return errdefs.Unavailable(
        f'failed to do request: {method} "{_shown(request.url)}": {why}', detail={"registry": kind}
    )


def server_message(body: bytes) -> str:
    """`code: message` of the errors in a body (OCI distribution: Error Codes), or nothing."""
    try:
        errors = json.loads(body)["errors"]
        lines = [
            f"{str(each['code']).lower().replace('_', '')}: {each.get('message', '')}" for each in errors
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return _printable("; ".join(lines))


def _reason(error: Exception, url: httpx.URL) -> tuple[str, str]:
    address = f"{url.host}:{url.port or (443 if url.scheme == 'https' else 80)}"
    for cause in causes(error):
        if isinstance(cause, socket.gaierror):
            return f"dial tcp: lookup {url.host}: no such host", "unknown-host"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"tls: failed to verify certificate: x509: {refused_certificate(cause, url.host)}", "away"
        if isinstance(cause, ssl.SSLError):
            return f"remote error: tls: {cause.reason or cause}", "away"
        if isinstance(cause, ConnectionRefusedError):
            return f"dial tcp {address}: connect: connection refused", "away"
        if isinstance(cause, OSError) and cause.strerror:
            return f"dial tcp {address}: {cause.strerror.lower()}", "away"
    if isinstance(error, httpx.ConnectTimeout):
        return f"dial tcp {address}: i/o timeout", "away"
    if isinstance(error, httpx.TimeoutException):
        return "net/http: timeout awaiting the server", "away"
    if isinstance(error, httpx.ProxyError):
        return f"proxy: {error}", "away"
    return str(error) or "unexpected EOF", "away"


def _shown(url: httpx.URL) -> str:
    """A URL without what may be a secret: name, password, and the query of another host's signed address."""
    return str(url.copy_with(username=None, password=None, query=None))


def server_said(said: str) -> str:
    return f" - Server message: {said}" if said else ""


def _printable(text: str) -> str:
    return "".join(sign for sign in text if sign.isprintable())[:1000]
