"""A session keyring of the container's own: keyrings(7)."""

from __future__ import annotations

import errno

from linux import syscalls

from runc_bin.libcontainer.failures import step

_USER_SEARCH = 0x080000  # search permission of the owning user (KEY_USR_SEARCH)


def join(container_id: str) -> None:
    """Leave the caller's session keyring for `_ses.<id>`, which further processes of the container can
    find.

    Hosts without keyrings are left as they are: the protection is an extra.
    """
    with step("unable to join session keyring"):
        try:
            serial = syscalls.join_session_keyring(f"_ses.{container_id}")
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return
            raise
    with step("unable to mod keyring permissions"):
        permissions = int(syscalls.describe_key(serial).split(";")[3], 16)
        syscalls.set_key_permissions(serial, permissions | _USER_SEARCH)
