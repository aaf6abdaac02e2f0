"""GET /images/search: the search of a registry of the first kind, as Docker Hub still has it (moby
registry/search.go, search_endpoint_v1.go).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote_plus

import errdefs
from http_client.proxies import Proxies

from dockerd_api.registries import answers
from dockerd_api.registries.client import Client
from dockerd_api.registries.credentials import Credentials
from dockerd_api.registries.endpoints import Endpoint
from dockerd_api.registries.settings import HUB, HUB_INDEX, NO_CERTIFICATES, Registries

_LIMIT, _MOST = 25, 100
_LARGEST = 4 << 20  # bytes of an answer
_FILTERS = ("is-automated", "is-official", "stars")
_TRUE, _FALSE = ("1", "true"), ("0", "false")


async def search(
    registries: Registries,
    proxies: Proxies,
    term: str,
    limit: int,
    filters: Mapping[str, Sequence[str]],
    who: Credentials,
    user_agent: str,
) -> list[dict[str, Any]]:
    """The repositories that a registry finds for `[host/]words`; `limit` 0 means 25.

    Raises InvalidArgument for what cannot be asked, Internal when the registry is away or has no search.
    """
    for name in filters:
        if name not in _FILTERS:
            raise errdefs.InvalidArgument(f"invalid filter '{name}'")
    automated = _boolean(filters, "is-automated")
    official = _boolean(filters, "is-official")
    stars = _stars(filters.get("stars", ()))
    if "://" in term:
        raise errdefs.InvalidArgument(
            f"invalid repository name: repository name ({term}) should not have a scheme"
        )
    if limit and not 1 <= limit <= _MOST:
        raise errdefs.InvalidArgument(f"limit {limit} is outside the range of [1, {_MOST}]")
    if automated:
        return []  # no repository is said to be any more
    host, words = _split(term)
    found = await _found(registries, proxies, host, words, limit or _LIMIT, who, user_agent)
    results = []
    for result in found:
        shown = _result(result)
        if official is not None and shown["is_official"] != official:
            continue
        if stars is not None and shown["star_count"] < stars:
            continue
        results.append(shown)
    return results


async def _found(
    registries: Registries,
    proxies: Proxies,
    host: str,
    words: str,
    limit: int,
    who: Credentials,
    user_agent: str,
) -> list[dict[str, Any]]:
    endpoint = await _endpoint(registries, proxies, host, user_agent)
    own = (HUB_INDEX if who.server in ("", HUB) else who.host(host)) == endpoint.host or who.host(
        host
    ) == host
    client = Client(
        endpoint,
        who if own else Credentials(),
        proxies=proxies,
        user_agent=user_agent,
        scope="registry:catalog:search",
    )
    path = f"/v1/search?q={quote_plus(words)}&n={limit}"
    async with client:
        if own and who.identity_token and who.username:
            await client.ping()
        answer = await client.get(
            path, largest=_LARGEST, basic=bool(own and who.username and not who.identity_token)
        )
    if answer.status != 200:
        raise errdefs.Internal(f"Unexpected status code {answer.status}")
    document = answer.json()
    results = document.get("results") if isinstance(document, dict) else None
    if results is None:
        return []
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise errdefs.Internal("error decoding registry search results: results are no list of objects")
    return results


async def _endpoint(registries: Registries, proxies: Proxies, host: str, user_agent: str) -> Endpoint:
    """Where the registry's first interface answers."""
    if host == HUB:
        return Endpoint(f"https://{HUB_INDEX}")
    insecure = await registries.is_insecure(host)
    certificates = NO_CERTIFICATES if insecure else registries.certificates_of(host)
    tls = Endpoint(f"https://{host}", insecure, certificates)
    try:
        await _ping(tls, proxies, user_agent)
        return tls
    except errdefs.Internal as error:
        if not insecure:
            raise errdefs.InvalidArgument(
                f"invalid registry endpoint {tls.url}/v1/: {error.message}. If this private registry "
                "supports only HTTP or HTTPS with an unknown CA certificate, please add `--insecure-registry "
                f"{host}` to the daemon's arguments. In the case of HTTPS, if you have access to the "
                "registry's CA certificate, no need for the flag; simply place the CA certificate at "
                f"{registries.certs_dir}/{host}/ca.crt"
            ) from error
        plain = Endpoint(f"http://{host}", insecure)
        try:
            await _ping(plain, proxies, user_agent)
        except errdefs.Internal as second:
            raise errdefs.InvalidArgument(
                f'invalid registry endpoint "{plain.url}/v1/". HTTPS attempt: {error.message}. '
                f"HTTP attempt: {second.message}"
            ) from second
        return plain


async def _ping(endpoint: Endpoint, proxies: Proxies, user_agent: str) -> None:
    async with Client(endpoint, Credentials(), proxies=proxies, user_agent=user_agent) as client:
        await client.get("/v1/_ping", largest=_LARGEST)


def _split(term: str) -> tuple[str, str]:
    host, slash, rest = term.partition("/")
    if not slash or (not any(mark in host for mark in ".:") and host != "localhost"):
        return HUB, term.removeprefix("library/")
    host = HUB if host == HUB_INDEX else host
    return host, rest.removeprefix("library/") if host == HUB else rest


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
    """One result, as the API shows it."""
    stars = result.get("star_count")
    return {
        "star_count": stars if isinstance(stars, int) and not isinstance(stars, bool) else 0,
        "is_official": result.get("is_official") is True,
        "name": answers.printable(str(result.get("name") or "")),
        "is_automated": False,
        "description": answers.printable(str(result.get("description") or "")),
    }


def _boolean(filters: Mapping[str, Sequence[str]], name: str) -> bool | None:
    """The value of a filter that is true or false; None when it is not there."""
    values = filters.get(name, ())
    if not values:
        return None
    if len(values) == 1 and values[0] in (*_TRUE, *_FALSE):
        return values[0] in _TRUE
    raise errdefs.InvalidArgument(f"invalid filter '{name}={values}'")


def _stars(values: Sequence[str]) -> int | None:
    """The largest number among them."""
    if not values:
        return None
    for value in values:
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", value):
            raise errdefs.InvalidArgument(
                f"invalid filter 'stars={value}': strconv.Atoi: parsing \"{value}\": invalid syntax"
            )
    return max(0, *map(int, values))
