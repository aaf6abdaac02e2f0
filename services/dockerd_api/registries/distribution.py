"""What a registry has of an image, without pulling it (moby api/server/router/distribution)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin

import errdefs
from http_client.proxies import Proxies

from dockerd_api.registries.client import Answer, Client
from dockerd_api.registries.credentials import Credentials
from dockerd_api.registries.endpoints import Endpoint, endpoints
from dockerd_api.registries.settings import Registries

_LARGEST_MANIFEST = 4 << 20  # bytes, as Docker's registry has it
_LARGEST_CONFIG = 8 << 20
_LARGEST_LIST = 4 << 20
_MOST_PAGES = 1000
_INDEXES = (
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)
_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)
_OLD = (
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
)
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
_PLATFORM = ("architecture", "os", "os.version", "os.features", "variant")


class Repository:
    """One repository, `domain` and `path` as in a full name, for one user."""

    def __init__(
        self,
        registries: Registries,
        proxies: Proxies,
        domain: str,
        path: str,
        who: Credentials,
        user_agent: str,
    ) -> None:
        self._registries = registries
        self._proxies = proxies
        self._domain = domain
        self._path = path
        self._who = who
        self._user_agent = user_agent

    async def inspect(self, reference: str, full_name: str) -> dict[str, Any]:
        """The descriptor and the platforms of a tag or digest (API 1.50: DistributionInspect).

        Mirrors come first; the last error is told. Raises NotFound, Unauthenticated, PermissionDenied,
        InvalidArgument for a manifest of a kind that is no more, and Internal.
        """
        last: errdefs.BuoyError = errdefs.Internal("no endpoint")
        for endpoint in await endpoints(self._registries, self._domain, mirrors=True):
            try:
                async with self._client(endpoint) as client:
                    await client.ping()
                    return await self._inspected(client, reference, full_name)
            except errdefs.BuoyError as error:
                last = error
                if _is_final(error, endpoint):
                    break
        raise last

    async def tags(self, familiar_name: str) -> list[str]:
        """All tags. Raises NotFound and so on, as `inspect` does."""
        last: errdefs.BuoyError = errdefs.Internal("no endpoint")
        for endpoint in await endpoints(self._registries, self._domain, mirrors=True):
            try:
                async with self._client(endpoint) as client:
                    await client.ping()
                    return await self._listed(client)
            except errdefs.BuoyError as error:
                last = error
                if _is_final(error, endpoint):
                    break
        code = last.detail.get("code")
        if code == "NAME_UNKNOWN":
            raise errdefs.NotFound(f"repository {familiar_name} not found: {last.message}")
        if code == "DENIED":
            raise errdefs.NotFound(
                f"pull access denied for {familiar_name}, repository does not exist or may require "
                f"'docker login': {last.message}"
            )
        raise last

    def _client(self, endpoint: Endpoint) -> Client:
        """One that says who the user is only where the credentials are good for."""
        own = self._who.host(self._domain) == endpoint.host
        return Client(
            endpoint,
            self._who if own else Credentials(),
            proxies=self._proxies,
            user_agent=self._user_agent,
            scope=f"repository:{self._path}:pull",
        )

    async def _inspected(self, client: Client, reference: str, full_name: str) -> dict[str, Any]:
        answer = await self._asked(
            client, f"/manifests/{reference}", _LARGEST_MANIFEST, (*_INDEXES, *_MANIFESTS, *_OLD)
        )
        digest = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
        if reference.startswith("sha256:") and reference != digest:
            raise errdefs.Internal(f"manifest verification failed for digest {reference}")
        document = _object(answer)
        media_type = _media_type(answer, document)
        if media_type in _OLD:
            raise errdefs.InvalidArgument(
                "Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been "
                f"removed. Suggest the author of {full_name} to upgrade the image to the OCI Format or "
                "Docker Image manifest v2, schema 2. More information at "
                "https://docs.docker.com/go/deprecated-image-specs/"
            )
        return {
            "Descriptor": {"mediaType": media_type, "digest": digest, "size": len(answer.body)},
            "Platforms": await self._platforms(client, media_type, document),
        }

    async def _platforms(
        self, client: Client, media_type: str, document: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        if media_type in _INDEXES:
            listed = document.get("manifests")
            entries = listed if isinstance(listed, list) else []
            found = [each.get("platform") or {} for each in entries if isinstance(each, dict)]
            return [_platform(each) for each in found if isinstance(each, dict)]
        config = document.get("config")
        digest = config.get("digest") if isinstance(config, dict) else None
        if not isinstance(digest, str) or not re.fullmatch(r"sha256:[a-f0-9]{64}", digest):
            return []
        try:
            answer = await self._asked(client, f"/blobs/{digest}", _LARGEST_CONFIG, ())
            if f"sha256:{hashlib.sha256(answer.body).hexdigest()}" != digest:
                return []
            said = _platform(_object(answer))
        except errdefs.BuoyError:
            return []  # the descriptor is what was asked for
        return [said] if said["os"] or said["architecture"] else []

    async def _listed(self, client: Client) -> list[str]:
        tags: list[str] = []
        path = "/tags/list"
        url = f"/v2/{self._path}{path}"
        for _ in range(_MOST_PAGES):
            answer = await client.get(url, largest=_LARGEST_LIST)
            if answer.status >= 400:
                raise answer.error()
            listed = _object(answer).get("tags") or []
            tags += [tag for tag in listed if isinstance(tag, str)]
            following = _NEXT.search(answer.headers.get("link", ""))
            if following is None:
                return tags
            url = urljoin(answer.url, following[1])
        raise errdefs.ResourceExhausted(f"{self._domain}/{self._path}: too many pages of tags")

    async def _asked(self, client: Client, path: str, largest: int, accept: tuple[str, ...]) -> Answer:
        headers = {"Accept": ", ".join(accept)} if accept else {}
        answer = await client.get(f"/v2/{self._path}{path}", largest=largest, headers=headers)
        if answer.status >= 400:
            raise answer.error()
        return answer


def _is_final(error: errdefs.BuoyError, endpoint: Endpoint) -> bool:
    """Whether the registry itself has spoken: then it is not asked again, least of all without TLS."""
    return not endpoint.mirror and (bool(error.detail.get("code")) or not isinstance(error, errdefs.Internal))


def _object(answer: Answer) -> dict[str, Any]:
    document = answer.json()
    if not isinstance(document, dict):
        raise errdefs.Internal(f"{answer.url}: {json.dumps(document)[:100]} is no object")
    return document


def _media_type(answer: Answer, document: Mapping[str, Any]) -> str:
    """What the manifest says of itself, or else what the registry says of it. Both may not differ."""
    told = str(answer.headers.get("content-type", "")).partition(";")[0].strip()
    said = document.get("mediaType")
    if isinstance(said, str) and said and said != told and told in (*_INDEXES, *_MANIFESTS, *_OLD):
        raise errdefs.InvalidArgument(f"manifest has media type {said[:100]!r}, sent as {told!r}")
    found = said if isinstance(said, str) and said else told
    if found not in (*_INDEXES, *_MANIFESTS, *_OLD):
        raise errdefs.InvalidArgument(
            f"unsupported manifest media type and no default available: {found[:100]}"
        )
    wrong = "layers" if found in _INDEXES else "manifests"
    if wrong in document and found not in _OLD:
        raise errdefs.InvalidArgument(f"{wrong} in a manifest of media type {found}")
    return found


def _platform(document: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: document[key] for key in _PLATFORM if document.get(key)}
    return {"architecture": "", "os": ""} | found
