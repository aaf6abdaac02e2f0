"""The five capability sets of a process: capabilities(7)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from errdefs import InvalidArgument
from linux import syscalls

from runc_bin.record import Record

NAMES: tuple[str, ...] = tuple(
    f"CAP_{name}"
    for name in (  # noqa: SIM905 - one word each: a table
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE"
        " NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO"
        " SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME"
        " SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG"
        " WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
_NUMBER = {name: number for number, name in enumerate(NAMES)}
_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


class Capabilities(Record):
    """Masks, bit n being capability n; `unknown` are names of a spec that mean nothing here."""

    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0
    unknown: tuple[str, ...] = ()

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Capabilities:
        """Check a `capabilities` object. A name that nobody knows has no effect: callers may warn of it."""
        masks: dict[str, int] = {}
        unknown: dict[str, None] = {}
        for key in _SETS:
            names = document.get(key) or []
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise InvalidArgument(f"process.capabilities.{key} must hold strings")
            masks[key] = sum({1 << _NUMBER[name] for name in names if name in _NUMBER})
            unknown.update((name, None) for name in names if name not in _NUMBER)
        return cls(**masks, unknown=tuple(unknown))

    def with_added(self, names: list[str]) -> Capabilities:
        """These and `names` in the bounding, effective and permitted sets; InvalidArgument for an unknown
        name.
        """
        mask = 0
        for name in names:
            if name not in _NUMBER:
                raise InvalidArgument(f"unknown capability {name!r}")
            mask |= 1 << _NUMBER[name]
        ambient = self.ambient | mask if self.inheritable else self.ambient
        return Capabilities(
            self.bounding | mask, self.effective | mask, self.permitted | mask, self.inheritable, ambient
        )


def drop_bounding(keep: int) -> None:
    """Drop every capability outside `keep` from the bounding set, also ones newer than our list."""
    number = 0
    while True:
        if not keep >> number & 1:
            try:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == errno.EINVAL:  # beyond the kernel's last one
                    return
                raise
        number += 1
        if number > 63:
            return


def apply(caps: Capabilities) -> None:
    """Set the other four sets of this process. Capabilities that the caller lacks are left out.

    A host's root may itself run without some (inside a container, or a locked-down host); asking the kernel
    for them would fail the whole call.
    """
    _, own, _ = syscalls.capget()
    permitted = caps.permitted & own
    inheritable = caps.inheritable & (own | caps.bounding)
    syscalls.capset(caps.effective & permitted, permitted, inheritable)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    ambient = caps.ambient & permitted & inheritable
    for number in range(len(NAMES)):
        if ambient >> number & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
