"""AppArmor as the kernel shows it: is it there, which profiles are loaded, load one.

Sources: apparmor(7), apparmor_parser(8). Nothing here is called on a container's way to its start.
"""

from __future__ import annotations

import os

_PROFILES = "/sys/kernel/security/apparmor/profiles"
_PARSER = "/sbin/apparmor_parser"
_LOAD_TIMEOUT = 30.0


def enabled() -> bool:
    """Whether the host runs with AppArmor."""
    if not os.path.isdir("/sys/kernel/security/apparmor"):
        return False
    try:
        with open("/sys/module/apparmor/parameters/enabled", encoding="utf-8") as parameter:
            return parameter.read(1) == "Y"
    except OSError:
        return False


def usable() -> bool:
    """Whether profiles can be loaded too. Without its parser AppArmor counts as absent, as for containerd."""
    return enabled() and os.access(_PARSER, os.X_OK)


def loaded(name: str) -> bool:
    """Whether the kernel has a profile of that name. Lines are `name (mode)`; names may hold blanks."""
    with open(_PROFILES, encoding="utf-8") as profiles:
        return any(line.rpartition(" (")[0] == name for line in profiles)


def load(text: str) -> None:
    """Load (or replace) the profiles in `text`.

    OSError with the parser's words, also when it is not installed.
    """
    import subprocess  # a runtime that only asks `enabled` has no use for it

    # -K: no cache, which the parser would want to write into /etc
    command = [_PARSER, "-Kr"]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_LOAD_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{' '.join(command)} did not end within {_LOAD_TIMEOUT:.0f} s") from error
    if done.returncode:
        raise OSError(f"{' '.join(command)} failed with status {done.returncode}: {done.stderr.strip()}")
