"""TLS of a client: certificates to trust and to show, and why a handshake failed, in Go's words."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator

import errdefs

_AUTHORITY_CODES = (18, 19, 20, 21)  # X509_V_ERR_*: self-signed, or no issuer found
_EXPIRED_CODES = (9, 10)
_NAME_CODES = (62, 64)


def context(
    authorities: Iterable[str], clients: Iterable[tuple[str, str]], *, skip_verify: bool
) -> ssl.SSLContext:
    """Trusts the host's authorities and these files, and shows these pairs of certificate and key. Raises
    InvalidArgument for what cannot be read. Blocks.
    """
    made = ssl.create_default_context()
    if skip_verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    file = ""
    try:
        for file in authorities:
            made.load_verify_locations(file)
        for file, key in clients:
            made.load_cert_chain(file, key)
    except (OSError, ssl.SSLError) as error:
        raise errdefs.InvalidArgument(f"cannot use certificate {file}: {error}") from None
    return made


def is_no_tls(error: BaseException) -> bool:
    """Whether a handshake failed because the server does not speak TLS."""
    return any(
        isinstance(each, ssl.SSLError)
        and each.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
        for each in causes(error)
    )


def refused_certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    """Why the certificate of a host was not taken."""
    if error.verify_code in _AUTHORITY_CODES:
        return "certificate signed by unknown authority"
    if error.verify_code in _EXPIRED_CODES:
        return "certificate has expired or is not yet valid"
    if error.verify_code in _NAME_CODES:
        return f"certificate is not valid for {host}"
    return error.verify_message


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and the members of groups among them."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        waiting += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
