"""The networks of one engine: what containers are attached to, from intent to kernel and back.

Attaching writes its intent first (engine.db), then goes from namespace to address to rules to listeners;
an error undoes in reverse. Opening is recovering: rows without a namespace and namespaces without a row are
removed, the bridge and the firewall are compared with what they should be and left alone when they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import errdefs
from linux.crashpoints import crashpoint
from storage.database import Database

from dockerd_api.network import conntrack, documents, files, ports, requests, settings, store
from dockerd_api.network.drivers import Driver, gather
from dockerd_api.network.drivers.bridge import Bridge, enable_forwarding, restore_forwarding
from dockerd_api.network.drivers.predefined import Addressless
from dockerd_api.network.firewall import Firewall, PortRule, table_name
from dockerd_api.network.foreign import ForeignFirewalls
from dockerd_api.network.model import Attachment, AttachRequest, BoundPort, Endpoint, PortRequest
from dockerd_api.network.netns_helper import NetnsHelper
from dockerd_api.network.sandboxes import Sandbox, Sandboxes, random_mac
from dockerd_api.network.store import NetworkRow, Record
from dockerd_api.network.watch import Watch

__all__ = [
    "AttachRequest",
    "Attachment",
    "BoundPort",
    "Endpoint",
    "NetnsHelper",
    "Networks",
    "PortRequest",
]

T = TypeVar("T")
# A class with a method `list` cannot name the type below it.
Documents = list[dict[str, Any]]
Listeners = list[tuple[BoundPort, socket.socket]]
Texts = list[str]
log = logging.getLogger(__name__)
_LISTING = "firewall"
_FORWARDING = "ip_forward"


class Networks:
    """The networks of one engine and who is attached to them. Made by `open`."""

    def __init__(
        self,
        database: Database,
        helper: NetnsHelper,
        sandboxes: Sandboxes,
        chosen: settings.Settings,
        instance: str,
        exec_root: Path,
    ) -> None:
        self._database = database
        self._helper = helper
        self._sandboxes = sandboxes
        self._settings = chosen
        self._exec_root = exec_root
        self._kernel = ThreadPoolExecutor(1, "network-kernel")
        self._firewall = Firewall(table_name(instance)) if chosen.firewall else None
        self._bridge = None if chosen.bridge == "none" else Bridge(instance, chosen)
        self._drivers: dict[str, Driver] = {
            "none": Addressless("null", own_namespace=True),
            "host": Addressless("host", own_namespace=False),
        }
        if self._bridge is not None:
            self._drivers["bridge"] = self._bridge
        self._rows: dict[str, NetworkRow] = {}
        self._records: dict[str, Record] = {}
        self._ports = ports.PortTable()
        self._locks: dict[str, asyncio.Lock] = {}
        self._ipv6 = ports.ipv6_listens()
        self._listing = ""
        self._foreign = ForeignFirewalls(self._foreign_drops)
        self._watch: Watch | None = None

    @classmethod
    async def open(
        cls,
        database: Database,
        *,
        instance: str,
        exec_root: Path,
        config: Mapping[str, object],
        helper: NetnsHelper | None = None,
        ready: int = 4,
    ) -> Networks:
        """Recover what is there and make what is missing; nothing that is right is touched.

        `config` is daemon.json. Without a `helper` (forked by the daemon before its threads) one is started.
        `ready` sandboxes are kept made ahead. Raises InvalidArgument or NotImplementedHere for a setting,
        FailedPrecondition for a bridge that cannot be used.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]*", instance):
            raise errdefs.InvalidArgument(f"invalid instance name: {instance}")
        chosen = settings.read(config)
        folder = exec_root / "netns"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = helper or NetnsHelper.spawn()
        sandboxes = Sandboxes(own, folder, ready=ready)
        networks = cls(database, own, sandboxes, chosen, instance, exec_root)
        try:
            await own.lock(exec_root / "netns.lock")
            await networks._recover()
        except BaseException:
            await networks.close()
            raise
        return networks

    async def _recover(self) -> None:
        await self._database.write(store.ensure, durable=False)
        rows, records, self._listing = await self._database.read(
            lambda c: (store.networks(c), store.records(c), store.fact(c, _LISTING))
        )
        stale = [r for r in records if r.netns and not self._sandboxes.exists(r.netns)]
        if stale:
            gone = [r.request.container_id for r in stale]
            await self._database.write(lambda c: store.drop(c, gone), durable=False)
        self._records = {r.request.container_id: r for r in records if r not in stale}
        leaked = await self._sandboxes.sweep({r.netns for r in self._records.values()})
        if leaked:
            log.info("removed %d network namespaces that belonged to no container", len(leaked))
        await self._recover_networks({row.name: row for row in rows})
        self._ports.hold(port for record in self._records.values() for port in record.ports)
        await self._recover_kernel()
        bridge = self._bridge
        self._sandboxes.start(
            bridge=bridge.index if bridge else 0,
            mtu=self._settings.mtu,
            isolated=not self._settings.icc,
        )

    async def _recover_networks(self, rows: dict[str, NetworkRow]) -> None:
        changed = []
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        for name, driver in self._drivers.items():
            old = rows.get(name)
            row = old or NetworkRow(secrets.token_hex(32), name, driver.name, now, {})
            if driver is self._bridge and self._bridge is not None:
                in_use = any(e.network_id == row.id for r in self._records.values() for e in r.endpoints)
                state = await self._blocking(functools.partial(self._establish, row.state, in_use))
                row = NetworkRow(row.id, row.name, row.driver, row.created, state)
            if row != old:
                changed.append(row)
            self._rows[name] = row
        if changed:
            await self._database.write(lambda c: store.put_networks(c, changed))

    def _establish(self, known: dict[str, Any], in_use: bool) -> dict[str, Any]:
        assert self._bridge is not None
        if self._settings.ip_forward:
            enable_forwarding(self._exec_root / _FORWARDING)
        state = self._bridge.establish(known, in_use=in_use)
        links = []
        for record in self._records.values():
            for endpoint in record.endpoints:
                if endpoint.network_name == "bridge":
                    self._bridge.hold(endpoint)
                    links.append(record.link)
        if links:
            for link in self._bridge.rejoin(links):
                log.warning("put %s back into %s", link, self._bridge.link)
        return state

    async def _recover_kernel(self) -> None:
        firewall = self._firewall
        if firewall is None:
            return
        bridges = [self._bridge.rules] if self._bridge else []
        rules = [rule for record in self._records.values() for rule in record.rules()]
        self._watch = Watch(firewall.table, self._mend_firewall)
        await self._blocking(lambda: firewall.reconcile(bridges, rules, self._listing))
        await self._remember_listing()
        await self._foreign.look()

    async def _mend_firewall(self) -> None:
        assert self._firewall is not None
        try:
            if await self._blocking(self._firewall.check):
                log.warning("nftables: rules of table %s were removed; they are back", self._firewall.table)
        except errdefs.BuoyError as error:
            log.error("nftables: rules of table %s were removed: %s", self._firewall.table, error)
        await self._remember_listing()

    async def _remember_listing(self) -> None:
        firewall = self._firewall
        if firewall is not None and firewall.listing != self._listing:
            self._listing = firewall.listing
            await self._database.write(lambda c: store.put_fact(c, _LISTING, self._listing), durable=False)

    async def _foreign_drops(self) -> Texts:
        firewall = self._firewall
        return await self._blocking(firewall.foreign_drops) if firewall is not None else []

    # Attaching.

    async def validate(self, request: AttachRequest) -> None:
        """Raises errdefs for a request that cannot be met, before anything is changed."""
        self._check(request)

    def _check(self, request: AttachRequest) -> str:
        return requests.check(request, self._drivers, self._gateways())

    async def attach(self, request: AttachRequest) -> Attachment:
        """Connect a container that is about to start.

        What an earlier attempt left of the same container is undone first. Raises ResourceExhausted when no
        address or port is free (with Docker's text), NotFound for a network or a container to join that is
        not there.
        """
        mode = self._check(request)
        async with self._locked(request.container_id):
            if request.container_id in self._records:
                await self._detach(request.container_id)
            if mode.startswith("container:"):
                return await self._join(request)
            return await self._attach(request, mode)

    async def _join(self, request: AttachRequest) -> Attachment:
        target = self._joined(request)
        if target is None:
            other = request.mode.removeprefix("container:")
            raise errdefs.Conflict(
                f"cannot join network namespace of a non running container: container {other} is not running"
            )
        record = Record(request, secrets.token_hex(32), "", "", (), ())
        await self._database.write(lambda c: store.put(c, record), durable=False)
        self._records[request.container_id] = record
        return self._attachment(target)

    def _joined(self, request: AttachRequest) -> Record | None:
        """Whose namespace a container:<id> request leads to, through others that joined; None when gone."""
        for _ in range(8):
            record = self._records.get(request.mode.removeprefix("container:"))
            if record is None or not record.request.mode.startswith("container:"):
                return record
            request = record.request
        return None

    async def _attach(self, request: AttachRequest, mode: str) -> Attachment:
        driver, row = self._drivers[mode], self._rows[mode]
        async with contextlib.AsyncExitStack() as undo:
            ready: Sandbox | None = None
            netns = link = mac = ""
            if driver.own_namespace:
                ready = self._sandboxes.take(bridged=driver.bridged)
                netns, link = (ready.name, ready.link) if ready else self._sandboxes.new_names()
                undo.push_async_callback(self._sandboxes.destroy, netns)
                if ready:
                    undo.callback(ready.release)
            if driver.bridged:
                mac = requests.mac(request.mac_address) or (ready.mac if ready else random_mac())
            else:
                link = ""
            endpoint_id = secrets.token_hex(32)
            endpoint = driver.setup(request, row, endpoint_id, mac)
            undo.callback(driver.teardown, endpoint, link)
            listeners = self._bind(request, endpoint) if driver.bridged else []
            for port, sock in listeners:
                undo.callback(self._ports.release, [port])
                undo.callback(sock.close)
            bound = tuple(port for port, _ in listeners)
            record = Record(request, secrets.token_hex(32), netns, link, (endpoint,), bound)
            undo.push_async_callback(self._drop, request.container_id)
            await self._database.write(lambda c: store.put(c, record), durable=False)
            crashpoint("network.attach.recorded")
            if driver.own_namespace:
                if ready is None:
                    ready = await self._sandboxes.make(netns, link, bridged=driver.bridged)
                    undo.callback(ready.release)
                crashpoint("network.attach.sandbox")
                if driver.bridged:
                    undo.push_async_callback(self._withdraw, record)
                    await self._blocking(self._configurer(ready, record, listeners))
                    ready.release()
            self._records[request.container_id] = record
            made = self._attachment(record, tuple(listeners))
            undo.pop_all()
        await self._remember_listing()
        return made

    def _bind(self, request: AttachRequest, endpoint: Endpoint) -> Listeners:
        if not request.ports:
            return []
        proxied = self._settings.userland_proxy
        wanted = ports.groups(
            request.ports, default_ip=self._settings.default_ip, ipv6=self._ipv6 and proxied
        )
        try:
            return self._ports.bind(wanted, endpoint.ip_address, proxied=proxied)
        except errdefs.ResourceExhausted as error:
            raise ports.on_endpoint(error, request, endpoint) from None

    def _configurer(
        self, sandbox: Sandbox, record: Record, listeners: Sequence[tuple[BoundPort, socket.socket]]
    ) -> Callable[[], None]:
        """The part of attaching that talks to the kernel, for the kernel thread."""
        (endpoint,) = record.endpoints
        address = ipaddress.IPv4Interface((endpoint.ip_address, endpoint.prefix_len))
        gateway = ipaddress.IPv4Address(endpoint.gateway)

        def configure() -> None:
            try:
                sandbox.configure(address, gateway, endpoint.mac_address)
            except OSError as error:
                raise errdefs.Internal(f"network namespace {sandbox.name}: {error.strerror}") from None
            crashpoint("network.attach.address")
            rules = record.rules()
            if rules and self._firewall is not None:
                self._firewall.publish(rules)
                crashpoint("network.attach.firewall")
                conntrack.forget_udp(_udp(rules))
            try:
                ports.listen(listeners)
            except errdefs.ResourceExhausted as error:
                raise ports.on_endpoint(error, record.request, endpoint) from None
            crashpoint("network.attach.listeners")

        return configure

    async def resume(self, container_id: str) -> Attachment | None:
        """What a running container has, without listeners (its shim holds them); None when not attached."""
        record = self._records.get(container_id)
        if record is None:
            return None
        if record.request.mode.startswith("container:"):
            record = self._joined(record.request)
        return self._attachment(record) if record is not None else None

    async def detach(self, container_id: str) -> None:
        """Take a container off its networks and give back what it held (idempotent).

        Everything is tried; what failed is raised at the end.
        """
        async with self._locked(container_id):
            await self._detach(container_id)

    async def _detach(self, container_id: str) -> None:
        record = self._records.get(container_id)
        if record is None:
            return
        errors: list[Exception] = []
        try:
            await self._withdraw(record)
        except errdefs.BuoyError as error:
            errors.append(error)
        crashpoint("network.detach.withdrawn")
        if record.netns:
            try:
                await self._sandboxes.destroy(record.netns)
            except errdefs.BuoyError as error:
                errors.append(error)
        crashpoint("network.detach.destroyed")
        await self._drop(container_id)
        del self._records[container_id]
        for endpoint in record.endpoints:
            self._drivers[endpoint.network_name].teardown(endpoint, record.link)
        self._ports.release(record.ports)
        await self._remember_listing()
        gather(f"detaching {container_id}", errors)

    async def _withdraw(self, record: Record) -> None:
        rules, firewall = record.rules(), self._firewall
        if not rules or firewall is None:
            return

        def withdraw() -> None:
            firewall.withdraw(rules)
            conntrack.forget_udp(_udp(rules))

        await self._blocking(withdraw)

    async def _drop(self, container_id: str) -> None:
        await self._database.write(lambda c: store.drop(c, [container_id]), durable=False)

    def _attachment(
        self, record: Record, listeners: tuple[tuple[BoundPort, socket.socket], ...] = ()
    ) -> Attachment:
        hosts, resolv_conf = files.texts(
            record.request,
            self._settings,
            address=record.address,
            own_namespace=bool(record.netns),
            gateways=self._gateways(),
            ipv6=self._ipv6,
        )
        return Attachment(
            netns_path=str(self._sandboxes.path(record.netns)) if record.netns else None,
            sandbox_id=record.sandbox_id,
            endpoints=record.endpoints,
            ports=record.ports,
            hosts=hosts,
            resolv_conf=resolv_conf,
            listeners=listeners,
        )

    def _gateways(self) -> tuple[str, ...]:
        if self._settings.host_gateways:
            return self._settings.host_gateways
        return (str(self._bridge.gateway.ip),) if self._bridge else ()

    # What the API shows.

    def list(self) -> Documents:
        """Every network as GET /networks shows it: without its containers."""
        return [self._document(row, ()) for row in self._rows.values()]

    def inspect(self, ref: str) -> dict[str, Any]:
        """One network, by id, name or the beginning of an id. NotFound, InvalidArgument when ambiguous."""
        return self._document(documents.find(self._rows.values(), ref), self._records.values())

    def _document(self, row: NetworkRow, attached: Iterable[Record]) -> dict[str, Any]:
        return documents.network(row, self._drivers[row.name].inspect(row), attached)

    def warnings(self) -> Texts:
        """What in the host's set-up keeps packets from containers, as lines for `info`; a few seconds old."""
        return self._foreign.warnings()

    # The end.

    async def close(self) -> None:
        """Stop; what is attached stays attached."""
        await self._stop_watching()
        await self._foreign.close()
        with contextlib.suppress(errdefs.BuoyError):
            await self._sandboxes.close()
        await self._helper.close()
        self._kernel.shutdown(wait=True)
        if self._firewall is not None:
            self._firewall.close()

    async def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.close()

    async def purge(self) -> None:
        """Remove everything of this instance from the kernel and the database, attached or not."""
        await self._stop_watching()
        for container_id in [*self._records]:
            await self.detach(container_id)
        await self._sandboxes.close()
        await self._sandboxes.sweep(set())
        bridge, firewall = self._bridge, self._firewall

        def remove() -> None:
            if bridge is not None:
                bridge.remove()
            if firewall is not None:
                firewall.purge()
            restore_forwarding(memory)

        memory = self._exec_root / _FORWARDING
        await self._blocking(remove)

    async def _blocking(self, fn: Callable[[], T]) -> T:
        """`fn()` in the kernel thread. A cancelled caller waits for it, so that undoing comes after."""
        future = asyncio.get_running_loop().run_in_executor(self._kernel, fn)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    @contextlib.asynccontextmanager
    async def _locked(self, container_id: str) -> Any:
        lock = self._locks.setdefault(container_id, asyncio.Lock())
        async with lock:
            yield
        if not lock.locked() and container_id not in self._records:
            self._locks.pop(container_id, None)


def _udp(rules: Sequence[PortRule]) -> list[tuple[str, int]]:
    return [(rule.host_ip, rule.host_port) for rule in rules if rule.protocol == "udp"]
