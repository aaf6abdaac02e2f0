"""POST /auth: whether a registry takes a user's name and password (moby registry/service.go, Auth)."""

from __future__ import annotations

from urllib.parse import urlsplit

import errdefs
from http_client.proxies import Proxies

from dockerd_api.registries import answers
from dockerd_api.registries.client import Client
from dockerd_api.registries.credentials import Credentials
from dockerd_api.registries.endpoints import endpoints
from dockerd_api.registries.settings import HUB_INDEX, Registries

_LARGEST = 64 * 1024  # bytes of an answer


async def login(registries: Registries, proxies: Proxies, who: Credentials, user_agent: str) -> str:
    """The identity token that the registry gave in exchange, which may be none. Mirrors are not asked.

    Raises Unauthenticated where a token server refuses, Internal where the registry does or is away,
    InvalidArgument for an address that is none.
    """
    last: errdefs.BuoyError = errdefs.Internal("no endpoint")
    for endpoint in await endpoints(registries, _host(who.server), mirrors=False):
        client = Client(endpoint, who, proxies=proxies, user_agent=user_agent, offline=True)
        try:
            async with client:
                await client.ping()
                answer = await client.get("/v2/", largest=_LARGEST)
        except errdefs.Unauthenticated:
            raise  # the password is not tried where there is no TLS
        except errdefs.Internal as error:
            last = error
            continue
        if answer.status == 200:
            return client.identity_token
        # What an endpoint with TLS has refused is not said again without it.
        raise errdefs.Internal(
            f"login attempt to {endpoint.url}/v2/ failed with status: {answers.status_text(answer.status)}"
        )
    raise last


def _host(server: str) -> str:
    if not server:
        return HUB_INDEX
    address = server if server.startswith(("https://", "http://")) else f"https://{server}"
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise errdefs.InvalidArgument(f'unable to parse server address: parse "{address}": {error}') from None
    if not parts.hostname or any(sign.isspace() for sign in parts.netloc) or "@" in parts.netloc:
        raise errdefs.InvalidArgument(
            f'unable to parse server address: parse "{address}": invalid character in host name'
        )
    return parts.netloc
