"""Which capabilities a container gets: Docker's defaults, `--cap-add`, `--cap-drop`, `--privileged`.

Sources: capabilities(7), linux/capability.h; the default list and the rules are those of moby's daemon.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from errdefs import InvalidArgument

_ALL = "ALL"


def _cap_names(text: str) -> tuple[str, ...]:
    return tuple(f"CAP_{name}" for name in text.split())


# In the order of their numbers.
NAMES = _cap_names("""
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
    SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
    AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
    PERFMON BPF CHECKPOINT_RESTORE
""")
_DEFAULT = _cap_names("""
    CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE
    SYS_CHROOT KILL AUDIT_WRITE
""")


def default_capabilities() -> list[str]:
    """What a container has when nothing else is said."""
    return list(_DEFAULT)


@functools.cache
def available_capabilities() -> tuple[str, ...]:
    """All that this process could give away, which is what ALL and `--privileged` mean, in the order of their
    numbers.

    A kernel knows capabilities up to /proc/sys/kernel/cap_last_cap; a daemon that runs in a container has
    fewer.
    """
    with open("/proc/self/status", encoding="utf-8") as status:
        effective = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    with open("/proc/sys/kernel/cap_last_cap", encoding="utf-8") as last:
        count = int(last.read()) + 1
    return tuple(name for number, name in enumerate(NAMES[:count]) if effective >> number & 1)


def normalize(names: Iterable[str]) -> list[str]:
    """Full upper-case names (`net_raw` → `CAP_NET_RAW`; `ALL` stays).

    InvalidArgument with Docker's words for others.
    """
    available, found = available_capabilities(), []
    for given in names:
        name = given.upper()
        if name != _ALL and not name.startswith("CAP_"):
            name = f"CAP_{name}"
        if name != _ALL and name not in NAMES:
            raise InvalidArgument(f'unknown capability: "{name}"')
        if name != _ALL and name not in available:
            raise InvalidArgument(
                "capability not supported by your kernel or not available in the current environment: "
                f'"{name}"'
            )
        found.append(name)
    return found


def capabilities(cap_add: Iterable[str], cap_drop: Iterable[str], privileged: bool) -> list[str]:
    """The bounding set of a container. ALL in either list stands for everything available.

    InvalidArgument as Docker's create answers: `invalid CapAdd: unknown capability: "CAP_X"`.
    """
    add, drop = _checked("CapAdd", cap_add), _checked("CapDrop", cap_drop)
    if privileged:
        return list(available_capabilities())
    if _ALL in add:
        return [name for name in available_capabilities() if name not in drop]
    if _ALL in drop:
        return _unique(add)
    return _unique([*(name for name in _DEFAULT if name not in drop), *add])


def _checked(field: str, names: Iterable[str]) -> list[str]:
    try:
        return normalize(names)
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid {field}: {error.message}") from error


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
