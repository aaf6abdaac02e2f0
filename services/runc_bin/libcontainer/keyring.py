"""A session keyring of the container's own: keyrings(7)."""

from __future__ import annotations

import errno

from linux import syscalls

from runc_bin.libcontainer.failures import step

_USER_SEARCH = 0x080000  # search permission of the owning user (KEY_USR_SEARCH)


def join(container_id: str, label: str = "") -> None:
    """Leave the caller's session keyring for `_ses.<id>`, which further processes of the container can
    find; a new one gets the SELinux `label`.

    Hosts without keyrings are left as they are: the protection is an extra.
    """
    if not label:
        _join(container_id)
        return
    from runc_bin.libcontainer import selinux  # loaded with the check that the host has it

    selinux.label_keys(label)
    _join(container_id)
    selinux.label_keys("")


def _join(container_id: str) -> None:
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
