"""Where a registry is reached: its mirrors in order, then itself, with their TLS settings and headers.

The folder of a registry below `host_dir` holds either `hosts.toml`, as containerd reads it (docs/hosts.md
there), or certificates, as Docker reads `/etc/docker/certs.d` (`*.crt`: authorities; `NAME.cert` with
`NAME.key`: the client's certificate).
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import errdefs

PULL, RESOLVE, PUSH, REFERRERS = "pull", "resolve", "push", "referrers"
_CAPABILITIES = frozenset((PULL, RESOLVE, PUSH, REFERRERS))
_DIAL_TIMEOUT = 30.0  # seconds, as containerd's
_ROOT_KEYS = frozenset(
    (
        "server",
        "host",
        "capabilities",
        "ca",
        "client",
        "skip_verify",
        "header",
        "override_path",
        "dial_timeout",
    )
)
_HOST_KEYS = _ROOT_KEYS - {"server", "host"}
_HUB, _HUB_HOST = "docker.io", "registry-1.docker.io"
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Tls:
    """Paths of certificates. `client` is the certificate and its key, or nothing."""

    authorities: tuple[str, ...] = ()
    client: tuple[str, str] | None = None
    skip_verify: bool = False


@dataclass(frozen=True)
class Host:
    """One place to ask. `address` is host and port as they stand in a URL; `path` ends before the repository.

    try_plain: a server that does not speak TLS is asked without it. mirror: it stands for another registry.
    """

    scheme: str
    address: str
    path: str = "/v2"
    capabilities: frozenset[str] = _CAPABILITIES
    tls: Tls = Tls()
    headers: tuple[tuple[str, str], ...] = ()
    dial_timeout: float = _DIAL_TIMEOUT
    try_plain: bool = False
    mirror: bool = False


def hosts_of(registry: str, host_dir: str = "", default_scheme: str = "") -> list[Host]:
    """The places to ask for a registry (`docker.io`, `localhost:5000`), in order; the last is itself.

    Raises InvalidArgument, which names the file, for settings that cannot be followed.
    """
    if default_scheme not in ("", "http", "https"):
        raise errdefs.InvalidArgument(
            f"scheme {default_scheme!r} is neither http nor https: invalid argument"
        )
    own = _default(registry, default_scheme)
    for folder in _folders(registry, host_dir):
        if not folder.is_dir():
            continue
        file = folder / "hosts.toml"
        if file.is_file():
            try:
                return _parsed(file.read_text(), folder, own, default_scheme)
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValueError) as error:
                raise errdefs.InvalidArgument(f"{file}: {error}: invalid argument") from None
        tls = _certificates(folder)
        if tls != Tls():
            return [replace(own, scheme="https", tls=tls, try_plain=False)]
        return [own]
    return [own]


def is_loopback(address: str) -> bool:
    """Whether `host:port` is this host's own loopback."""
    host = urlsplit(f"//{address}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _default(registry: str, default_scheme: str) -> Host:
    address = _HUB_HOST if registry == _HUB else registry
    if default_scheme:
        return Host(default_scheme, address)
    if is_loopback(address):
        return Host("https", address, tls=Tls(skip_verify=True), try_plain=True)
    return Host("https", address)


def _folders(registry: str, host_dir: str) -> list[Path]:
    """Where the settings may be: containerd also writes the colon of the port as underlines."""
    if not host_dir:
        return []
    host, colon, port = registry.rpartition(":")
    names = [registry, "_default"]
    if colon and port.isdigit():
        names.insert(0, f"{host}_{port}_")
    return [Path(host_dir) / name for name in names]


def _certificates(folder: Path) -> Tls:
    authorities, client = [], []
    names = {entry.name for entry in folder.iterdir()}
    for name in sorted(names):
        if name.endswith(".crt"):
            authorities.append(str(folder / name))
        elif name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            if key not in names:
                raise errdefs.InvalidArgument(
                    f"missing key {key} for client certificate {name}. CA certificates must use the "
                    "extension .crt: invalid argument"
                )
            client.append((str(folder / name), str(folder / key)))
        elif name.endswith(".key") and f"{name.removesuffix('.key')}.cert" not in names:
            raise errdefs.InvalidArgument(
                f"missing client certificate {name.removesuffix('.key')}.cert for key {name}: "
                "invalid argument"
            )
    return Tls(tuple(authorities), _one(client, folder))


def _one(client: list[tuple[str, str]], where: object) -> tuple[str, str] | None:
    if len(client) > 1:
        raise errdefs.InvalidArgument(f"{where}: more than one client certificate: invalid argument")
    return client[0] if client else None


def _parsed(text: str, folder: Path, own: Host, default_scheme: str) -> list[Host]:
    document = tomllib.loads(text)
    _check_keys(document, _ROOT_KEYS, "")
    found = []
    for name, table in _table(document, "host", "").items():
        if not isinstance(table, dict):
            raise ValueError(f'host."{name}" is no table')
        _check_keys(table, _HOST_KEYS, f'host."{name}": ')
        place = _place(name, default_scheme)
        found.append(_configured(place, table, folder, mirror=place.address != own.address))
    server = _word(document, "server", "")
    place = _place(server, default_scheme) if server else own
    found.append(_configured(place, document, folder, mirror=place.address != own.address))
    return found


def _place(url: str, default_scheme: str) -> Host:
    """A host by its URL; without a scheme it is reached as a registry of that name would be."""
    if "://" not in url:
        return _default(url, default_scheme)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.query:
        raise ValueError(f"{url!r} is no address of a registry")
    address = _HUB_HOST if parts.netloc == _HUB else parts.netloc
    return Host(parts.scheme, address, parts.path.rstrip("/"))


def _configured(place: Host, table: Mapping[str, Any], folder: Path, *, mirror: bool) -> Host:
    tls = Tls(
        tuple(str(folder / each) for each in _words(table, "ca")),
        _one(_clients(table, folder), "client"),
        _flag(table, "skip_verify"),
    )
    path = place.path.removesuffix("/v2") if not _flag(table, "override_path") else place.path
    whole = path if _flag(table, "override_path") else f"{path}/v2"
    given = _words(table, "capabilities") if "capabilities" in table else sorted(_CAPABILITIES)
    unknown = set(given) - _CAPABILITIES
    if unknown:
        raise ValueError(f"unknown capability {min(unknown)!r}")
    headers = []
    for name, value in _table(table, "header", "").items():
        headers += [(str(name), word) for word in _words({name: value}, name)]
    # As containerd has it: http with settings of TLS means TLS first, but for the port that is never TLS's.
    either = place.scheme == "http" and tls != Tls() and urlsplit(f"//{place.address}").port != 80
    return replace(
        place,
        scheme="https" if either else place.scheme,
        path=whole,
        capabilities=frozenset(given),
        tls=tls if tls != Tls() else place.tls,
        try_plain=either or (place.try_plain and tls == Tls()),
        headers=tuple(headers),
        dial_timeout=_seconds(table["dial_timeout"]) if "dial_timeout" in table else _DIAL_TIMEOUT,
        mirror=mirror,
    )


def _clients(table: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """A file with both; files with both; or pairs of certificate and key."""
    value = table.get("client", [])
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list):
        raise ValueError("client is neither a string nor a list")
    found = []
    for entry in entries:
        words = [entry] if isinstance(entry, str) else entry
        if not isinstance(words, list) or len(words) not in (1, 2) or not all(map(_is_word, words)):
            raise ValueError("client: an entry is no file and no pair of files")
        found.append((str(folder / words[0]), str(folder / words[-1])))
    return found


def _is_word(value: object) -> bool:
    return isinstance(value, str)


def _check_keys(table: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise ValueError(f"{where}unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _word(table: Mapping[str, Any], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key} is no string")
    return value


def _words(table: Mapping[str, Any], key: str) -> list[str]:
    value = table.get(key, [])
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(map(_is_word, words)):
        raise ValueError(f"{key} is neither a string nor a list of strings")
    return words


def _flag(table: Mapping[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is neither true nor false")
    return value


def _table(table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{where}{key} is no table")
    return value


def _seconds(value: object) -> float:
    """Go's form of a time: `500ms`, `30s`, `1m`."""
    if isinstance(value, str):
        for unit, factor in _SECONDS.items():
            number = value.removesuffix(unit)
            if number != value and number.replace(".", "", 1).isdigit() and float(number) > 0:
                return float(number) * factor
    raise ValueError(f"dial_timeout {value!r} is no time such as 30s")
