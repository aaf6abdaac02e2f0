"""The settings of one registry as containerd reads them: `<folder>/<registry>/hosts.toml`.

(containerd docs/hosts.md) A file is written when a transfer needs it, since the addresses of a registry
decide whether it is insecure; equal settings make an equal file, so that transfers do not disturb each other.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from dockerd_api.registries.settings import HUB, HUB_REGISTRY, Certificates, Registries, directory


class Hosts:
    """Writes below `folder`, which is this daemon's."""

    def __init__(self, registries: Registries, folder: Path) -> None:
        self._registries = registries
        self._folder = folder

    async def directory_for(self, registry: str) -> str:
        """What to give as `host_dir` for an image of the registry; empty where nothing is set for it.

        A `hosts.toml` of the administrator's own, beside the certificates, stands for all other settings.
        Raises InvalidArgument for certificates without their keys.
        """
        own = self._registries.folder_of(registry)
        if own is not None and (own / "hosts.toml").exists():
            return str(self._registries.certs_dir)
        text = await self._text(registry)
        if text:
            await asyncio.to_thread(self._write, registry, text)
            return str(self._folder)
        return ""

    async def _text(self, registry: str) -> str:
        server = HUB_REGISTRY if registry == HUB else registry
        settings = await self._settings(registry, "https")
        mirrors = [await self._mirror(address) for address in self._registries.mirrors_of(registry)]
        if not settings and not mirrors:
            return ""
        # containerd asks a host with settings of TLS over TLS first, and plainly when it does not speak it,
        # where the address says http.
        insecure = "skip_verify = true" in settings
        return "\n".join(
            [f'server = "{"http" if insecure else "https"}://{server}"', *settings, *mirrors, ""]
        )

    async def _mirror(self, address: str) -> str:
        parts = urlsplit(address)
        settings = await self._settings(parts.netloc, parts.scheme)
        head = f"\n[host.{json.dumps(address.rstrip('/'))}]"
        return "\n".join([head, 'capabilities = ["pull", "resolve"]', *settings])

    async def _settings(self, host: str, scheme: str) -> list[str]:
        if scheme == "http":
            return []
        if await self._registries.is_insecure(host):
            return ["skip_verify = true"]
        return _toml(self._registries.certificates_of(host))

    def _write(self, registry: str, text: str) -> None:
        path = self._folder / directory(registry) / "hosts.toml"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if path.read_text() == text:
                return
        except FileNotFoundError:
            pass
        new = path.with_name(f"hosts.{secrets.token_hex(4)}.new")
        new.write_text(text)
        os.rename(new, path)


def _toml(certificates: Certificates) -> list[str]:
    lines = []
    if certificates.authorities:
        lines.append(f"ca = {json.dumps(certificates.authorities)}")
    if certificates.clients:
        lines.append(f"client = {json.dumps(certificates.clients)}")
    return lines
