"""The texts of a container's /etc/hosts and /etc/resolv.conf, made as Docker 28 makes them (resolv.conf(5),
hosts(5)). Pure but for reading the host's own files."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import errdefs

DEFAULT_NAMESERVERS = ("8.8.8.8", "8.8.4.4")
HOST_GATEWAY = "host-gateway"
_STUB = "127.0.0.53"
_STUB_UPSTREAM = Path("/run/systemd/resolve/resolv.conf")
_LOCAL_4 = "127.0.0.1\tlocalhost\n"
_LOCAL_6 = (
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)


@dataclass
class ResolvConf:
    """A resolver configuration in parts; `other` are lines that are passed on as they are."""

    nameservers: list[str] = field(default_factory=list)
    search: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The file's text."""
        lines = [f"nameserver {server}" for server in self.nameservers]
        if self.search:
            lines.append("search " + " ".join(self.search))
        if self.options:
            lines.append("options " + " ".join(self.options))
        return "".join(f"{line}\n" for line in [*lines, *self.other])


def parse(text: str) -> ResolvConf:
    """The parts of a resolv.conf; comments and nameservers that are no addresses are dropped."""
    conf = ResolvConf()
    for line in text.splitlines():
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        match words[0]:
            case "nameserver":
                if len(words) > 1 and _is_address(words[1]):
                    conf.nameservers.append(words[1])
            case "search" | "domain":
                if len(words) > 1:
                    conf.search = words[1:]
            case "options":
                conf.options.extend(words[1:])
            case _:
                conf.other.append(line)
    return conf


def host_conf(path: str = "") -> ResolvConf:
    """The host's configuration: the file `path`, or /etc/resolv.conf, or what stands behind it when that
    names only systemd-resolved's stub. Empty when there is no file."""
    if path:
        return _read(Path(path))
    conf = _read(Path("/etc/resolv.conf"))
    if conf.nameservers == [_STUB] and _STUB_UPSTREAM.exists():
        return _read(_STUB_UPSTREAM)
    return conf


def _read(path: Path) -> ResolvConf:
    try:
        return parse(path.read_text(errors="replace"))
    except FileNotFoundError:
        return ResolvConf()


def container_conf(
    host: ResolvConf,
    *,
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    own_namespace: bool = True,
) -> ResolvConf:
    """The container's configuration: the host's, with what was asked for in its place.

    In a namespace of its own the host's loopback and IPv6 servers do not answer and are left out; when none
    is left the public defaults stand in. Servers that were asked for are kept as they are.
    """
    conf = ResolvConf(list(host.nameservers), list(host.search), list(host.options), list(host.other))
    if dns:
        conf.nameservers = list(dns)
    elif own_namespace:
        conf.nameservers = [s for s in conf.nameservers if _reachable(s)] or list(DEFAULT_NAMESERVERS)
    if search:
        conf.search = [domain for domain in search if domain != "."]
    if options:
        conf.options = list(options)
    return conf


def _reachable(server: str) -> bool:
    address = ipaddress.ip_address(server)
    return address.version == 4 and not address.is_loopback


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def check_servers(servers: Iterable[str]) -> None:
    """Raises InvalidArgument for a nameserver that is no address."""
    for server in servers:
        if not _is_address(server):
            raise errdefs.InvalidArgument(f"bad nameserver address: {server}: invalid IP address")


def extra_hosts(entries: Iterable[str], gateways: Sequence[str]) -> list[tuple[str, str]]:
    """(name, address) of each `name:address`, `host-gateway` replaced. InvalidArgument for a bad entry."""
    found: list[tuple[str, str]] = []
    for entry in entries:
        name, colon, address = entry.partition(":")
        if not colon or not name:
            raise errdefs.InvalidArgument(f'bad format for add-host: "{entry}"')
        if address == HOST_GATEWAY:
            if not gateways:
                raise errdefs.InvalidArgument("unable to derive the IP value for host-gateway")
            found.extend((name, gateway) for gateway in gateways)
        elif not _is_address(address.strip("[]")):
            raise errdefs.InvalidArgument(f'invalid IP address in add-host: "{address}"')
        else:
            found.append((name, address.strip("[]")))
    return found


def hosts_text(
    *,
    hostname: str,
    domainname: str = "",
    address: str = "",
    extra: Iterable[tuple[str, str]] = (),
    ipv6: bool = True,
) -> str:
    """The text of /etc/hosts: the loopback names, the extra ones, and the container's own when it has an
    address. A full name also gets its first part."""
    text = _LOCAL_4 + (_LOCAL_6 if ipv6 else "")
    for name, given in extra:
        if ipv6 or ":" not in given:
            text += f"{given}\t{name}\n"
    if address and hostname:
        full = f"{hostname}.{domainname}" if domainname else hostname
        short, dot, _ = full.partition(".")
        text += f"{address}\t{full}{f' {short}' if dot else ''}\n"
    return text


def host_hosts(extra: Sequence[tuple[str, str]]) -> str:
    """The text for a container in the host's network: the host's own file, unless names were added."""
    if extra:
        return hosts_text(hostname="", extra=extra)
    try:
        return Path("/etc/hosts").read_text(errors="replace")
    except FileNotFoundError:
        return ""
