"""What the daemon itself asks registries: whether a login is good, what they have, what they find.

Their client is loaded when it is first used: most daemons never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from http_client.proxies import Proxies

from dockerd_api.registries.credentials import Credentials
from dockerd_api.registries.settings import Registries

if TYPE_CHECKING:
    from dockerd_api.registries.distribution import Repository


class Asking:
    """Registries, as these settings and proxies reach them."""

    def __init__(self, registries: Registries, proxies: Proxies) -> None:
        self._registries = registries
        self._proxies = proxies

    async def login(self, who: Credentials, user_agent: str) -> str:
        """See dockerd_api.registries.login."""
        from dockerd_api.registries.login import login

        return await login(self._registries, self._proxies, who, user_agent)

    def repository(self, domain: str, path: str, who: Credentials, user_agent: str) -> Repository:
        """One repository, for one user."""
        from dockerd_api.registries.distribution import Repository

        return Repository(self._registries, self._proxies, domain, path, who, user_agent)

    async def search(
        self, term: str, limit: int, filters: Mapping[str, Sequence[str]], who: Credentials, user_agent: str
    ) -> list[dict[str, Any]]:
        """See dockerd_api.registries.search."""
        from dockerd_api.registries.search import search

        return await search(self._registries, self._proxies, term, limit, filters, who, user_agent)
