"""The AppArmor profile of a container's program."""

from __future__ import annotations

from errdefs import Internal
from linux.apparmor import enabled

from runc_bin.libcontainer import attributes

__all__ = ["apply_exec", "enabled"]

# its own folder since Linux 5.8; `attr/exec` belongs to whichever module came first
_FILES = ("apparmor/exec", "exec")


def apply_exec(profile: str) -> None:
    """Let the next execve(2) of this thread switch to `profile`; nothing happens for an empty name.

    Internal says why it failed: see `attributes.write`.
    """
    if not profile:
        return
    try:
        attributes.write(_FILES, f"exec {profile}")
    except Internal as error:
        raise Internal(f"apparmor failed to apply profile: {error.message}") from error
    except OSError as error:
        raise Internal(
            f"apparmor failed to apply profile: {(error.strerror or str(error)).lower()}"
        ) from error
