"""Docker's default AppArmor profile, for hosts that run AppArmor.

The rules are moby's (profiles module, August 2026): everything is allowed but what leads out of a container.
Syntax: apparmor.d(5).
"""

from __future__ import annotations

import os

from errdefs import FailedPrecondition
from linux import apparmor

PROFILE_NAME = "docker-default"
_FOLDER = "/etc/apparmor.d"

# Writing to /proc is denied but for a process's own folder (/proc/<number>/...) and /proc/sys/kernel/shm*; of
# /sys only /sys/fs/cgroup may be written. Globs cannot say "not this word", so each rule denies one more
# letter of it.
_DENIED = """
  deny network alg,
  deny mount,

  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
"""


def profile_text(name: str = PROFILE_NAME, *, daemon: str = "unconfined", folder: str = _FOLDER) -> str:
    """The profile as apparmor_parser reads it.

    `daemon` is the profile that the sender of `docker kill` runs under, `folder` where the host keeps the
    shared parts that are used when they are there.
    """
    lines = []
    if os.path.exists(f"{folder}/abi/3.0"):
        # from ABI 4 on, `network` no longer includes Unix sockets
        lines.append("abi <abi/3.0>,")
    tunables = os.path.exists(f"{folder}/tunables/global")
    lines.append("#include <tunables/global>" if tunables else "@{PROC}=/proc/")
    lines += ["", f'profile "{name}" flags=(attach_disconnected,mediate_deleted) {{']
    if os.path.exists(f"{folder}/abstractions/base"):
        lines.append("  #include <abstractions/base>")
    lines += [
        "  network,",
        "  capability,",
        "  file,",
        "  umount,",
        "",
        # who may send signals: the host's processes, the runtimes, the daemon, and the container's own
        "  signal (receive) peer=unconfined,",
        "  signal (receive) peer=runc,",
        "  signal (receive) peer=crun,",
        f'  signal (receive) peer="{daemon}",',
        f'  signal (send,receive) peer="{name}",',
        f'  ptrace (trace,tracedby,read,readby) peer="{name}",',
        _DENIED.rstrip("\n"),
        "}",
        "",
    ]
    return "\n".join(lines)


def load_default_profile() -> bool:
    """Load docker-default unless the kernel has it; whether the host has a usable AppArmor.

    FailedPrecondition when it has but the profile cannot be loaded.
    """
    if not apparmor.usable():
        return False
    try:
        if not apparmor.loaded(PROFILE_NAME):
            apparmor.load(profile_text(daemon=_own_profile()))
    except OSError as error:
        raise FailedPrecondition(
            f"AppArmor enabled on system but the {PROFILE_NAME} profile could not be loaded: {error}"
        ) from error
    return True


def _own_profile() -> str:
    try:
        with open("/proc/self/attr/current", encoding="utf-8") as current:
            return current.read().strip().partition(" (")[0] or "unconfined"
    except OSError:
        return "unconfined"
