"""Device access rules: from the spec's list to the state that a devices cgroup shall have.

The kernel's v1 controller holds a default (allow all or deny all) and exceptions to it
(Documentation/admin-guide/cgroup-v1/ devices.rst). `DeviceState` is that, as a value. The same state is
written to v1 files or compiled to an eBPF program for v2, so that both behave alike. As in runc, a rule that
would cut a hole into a wildcard exception is refused: v1 would ignore it silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from errdefs import InvalidArgument

from runc_bin.record import Record

from .resources import number, text

WILDCARD = -1
_WHERE = "devices."


class Device(Record):
    """A set of devices: kind `c` or `b`; major and minor, -1 for any."""

    kind: str
    major: int
    minor: int

    def __lt__(self, other: Device) -> bool:
        return (self.kind, self.major, self.minor) < (other.kind, other.major, other.minor)


class Rule(Record):
    """One line for devices.allow or devices.deny. `device` None stands for all devices."""

    allow: bool
    device: Device | None
    access: frozenset[str]

    def line(self) -> str:
        """The rule as the v1 control files take it."""
        if self.device is None:
            return "a *:* rwm"
        major = "*" if self.device.major == WILDCARD else str(self.device.major)
        minor = "*" if self.device.minor == WILDCARD else str(self.device.minor)
        return f"{self.device.kind} {major}:{minor} {access_text(self.access)}"


ALL = frozenset("rwm")


def access_text(access: frozenset[str]) -> str:
    """`rwm` in the kernel's order."""
    return "".join(letter for letter in "rwm" if letter in access)


# What every container may use whatever its spec says: make any node (the spec's devices need it; opening one
# is another matter), the standard character devices, ptys, and tun as runc has kept it for old users. They
# are applied after the spec's rules.
ALWAYS = (
    Rule(True, Device("c", WILDCARD, WILDCARD), frozenset("m")),
    Rule(True, Device("b", WILDCARD, WILDCARD), frozenset("m")),
    *(
        Rule(True, Device("c", major, minor), ALL)
        for major, minor in (
            (1, 3),  # null
            (1, 8),  # random
            (1, 7),  # full
            (5, 0),  # tty
            (1, 5),  # zero
            (1, 9),  # urandom
            (136, WILDCARD),  # pts
            (5, 2),  # ptmx
            (10, 200),  # net/tun
        )
    ),
)


class DeviceState:
    """Default and exceptions. With `default_allow` the exceptions are denials, otherwise they are grants."""

    def __init__(self) -> None:
        self.default_allow = False
        self.exceptions: dict[Device, frozenset[str]] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeviceState):
            return NotImplemented
        return self.default_allow == other.default_allow and self.exceptions == other.exceptions

    __hash__ = None  # type: ignore[assignment]  # it changes

    def apply(self, rule: Rule) -> None:
        """Take one more rule into account; InvalidArgument for a hole in a wildcard."""
        if rule.device is None:
            self.default_allow = rule.allow
            self.exceptions = {}
        elif rule.allow != self.default_allow:
            self.exceptions[rule.device] = self.exceptions.get(rule.device, frozenset()) | rule.access
        else:
            self._remove(rule.device, rule.access)

    def _remove(self, device: Device, access: frozenset[str]) -> None:
        kind, major, minor = device.kind, device.major, device.minor
        for wider in (
            Device(kind, WILDCARD, minor),
            Device(kind, major, WILDCARD),
            Device(kind, WILDCARD, WILDCARD),
        ):
            if wider != device and self.exceptions.get(wider, frozenset()) & access:
                raise InvalidArgument(
                    f"device rule {Rule(True, device, access).line()!r} not supported: it would punch a hole "
                    f"in the wildcard rule {Rule(True, wider, self.exceptions[wider]).line()!r}"
                )
        left = self.exceptions.get(device, frozenset()) - access
        if left:
            self.exceptions[device] = left
        else:
            self.exceptions.pop(device, None)

    def transition(self, target: DeviceState) -> list[Rule]:
        """The fewest rules that turn this state into `target`, without taking away on the way what both
        allow. They come in the order in which the target got them, the spec's first: devices.list keeps it.

        What a default-allow cgroup denies cannot be read back from devices.list, so leaving one begins with a
        rule for all.
        """
        rules: list[Rule] = []
        old = self.exceptions
        if self.default_allow or target.default_allow:
            rules.append(Rule(target.default_allow, None, ALL))
            old = {}
        for device, access in old.items():
            if dropped := access - target.exceptions.get(device, frozenset()):
                rules.append(Rule(target.default_allow, device, dropped))
        for device, access in target.exceptions.items():
            if gained := access - old.get(device, frozenset()):
                rules.append(Rule(not target.default_allow, device, gained))
        return rules


def parse_list(devices_list: str) -> DeviceState:
    """The state that a v1 devices.list shows (a default-allow cgroup shows one line `a *:* rwm`)."""
    state = DeviceState()
    for line in devices_list.splitlines():
        kind, numbers, access = line.split(" ")
        if kind == "a":
            state.apply(Rule(True, None, ALL))
            continue
        major, minor = (WILDCARD if part == "*" else int(part) for part in numbers.split(":"))
        state.apply(Rule(True, Device(kind, major, minor), frozenset(access)))
    return state


def parse_spec(devices: Iterable[Mapping[str, Any]]) -> list[Rule]:
    """The rules of `linux.resources.devices`; InvalidArgument with the entry's place for a malformed one."""
    rules = []
    for index, entry in enumerate(devices):
        access = frozenset(text(entry, "access", _WHERE))
        field = f"linux.resources.{_WHERE}access"
        if not access:
            raise InvalidArgument(f"{field}: device access at {index} field cannot be empty")
        if access - ALL:
            raise InvalidArgument(
                f"{field}: device access at {index} holds other letters than rwm: {text(entry, 'access')!r}"
            )
        kind = text(entry, "type", _WHERE) or "a"
        if kind not in ("a", "b", "c"):
            raise InvalidArgument(f"linux.resources.{_WHERE}type: invalid cgroup device type {kind!r}")
        major, minor = number(entry, "major", _WHERE), number(entry, "minor", _WHERE)
        device = None
        if kind != "a":
            device = Device(kind, WILDCARD if major is None else major, WILDCARD if minor is None else minor)
        allow = entry.get("allow", False)
        if not isinstance(allow, bool):
            raise InvalidArgument(
                f"linux.resources.{_WHERE}allow: device allow at {index} must be true or false, not {allow!r}"
            )
        rules.append(Rule(allow, device, access))
    return rules


def target_state(devices: Iterable[Mapping[str, Any]]) -> DeviceState:
    """What the cgroup shall have for a spec's device rules, with the devices that every container may use."""
    state = DeviceState()
    for rule in [*parse_spec(devices), *ALWAYS]:
        state.apply(rule)
    return state
