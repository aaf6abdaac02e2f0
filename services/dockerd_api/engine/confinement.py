"""What confines a container's processes, from SecurityOpt, CapAdd, CapDrop and Privileged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import errdefs

from dockerd_api import security
from dockerd_api.engine.host import Host
from dockerd_api.engine.spec import Security


@dataclass(frozen=True, slots=True)
class Asked:
    """SecurityOpt taken apart. `seccomp`: "" (the default), builtin, unconfined or a profile's text."""

    seccomp: str = ""
    apparmor: str = ""
    no_new_privileges: bool = False


class Confinement:
    """Checks and resolves. `daemon_seccomp` is the daemon's own profile text, "" for the built-in one."""

    def __init__(self, host: Host, *, daemon_seccomp: str = "", no_new_privileges: bool = False) -> None:
        self._host = host
        self._daemon_seccomp = daemon_seccomp
        self._no_new_privileges = no_new_privileges

    def check(self, host_config: Mapping[str, Any]) -> None:
        """Raises what `resolve` would, before anything is changed."""
        self.resolve(host_config)

    def paths(self, host_config: Mapping[str, Any]) -> tuple[list[str] | None, list[str] | None]:
        """Masked and read-only paths: what the client gave, else the defaults, none for a privileged
        container.
        """
        masked, readonly = host_config["MaskedPaths"], host_config["ReadonlyPaths"]
        if host_config["Privileged"]:
            return masked, readonly
        return (
            list(security.MASKED_PATHS) if masked is None else masked,
            list(security.READONLY_PATHS) if readonly is None else readonly,
        )

    def apparmor_profile(self, host_config: Mapping[str, Any]) -> str:
        """The profile's name, "" where the host has no AppArmor."""
        if not self._host.apparmor:
            return ""
        asked = self._asked(host_config).apparmor
        if asked:
            return asked
        return "unconfined" if host_config["Privileged"] else "docker-default"

    def resolve(self, host_config: Mapping[str, Any]) -> Security:
        """What goes into the OCI document; InvalidArgument with Docker's text, NotImplementedHere."""
        asked = self._asked(host_config)
        privileged = bool(host_config["Privileged"])
        capabilities = security.capabilities(
            host_config["CapAdd"] or [], host_config["CapDrop"] or [], privileged
        )
        masked, readonly = self.paths(host_config)
        return Security(
            capabilities=capabilities,
            seccomp=security.container_seccomp(
                asked.seccomp,
                capabilities=capabilities,
                privileged=privileged,
                daemon_profile=self._daemon_seccomp,
            ),
            masked_paths=[] if privileged else masked or [],
            readonly_paths=[] if privileged else readonly or [],
            apparmor_profile=self.apparmor_profile(host_config),
            no_new_privileges=asked.no_new_privileges,
        )

    def _asked(self, host_config: Mapping[str, Any]) -> Asked:
        seccomp, apparmor, no_new_privileges = "", "", self._no_new_privileges
        for option in host_config["SecurityOpt"] or []:
            if option == "no-new-privileges":
                no_new_privileges = True
                continue
            if option == "disable":
                continue
            parts = re.split("[=:]", option, maxsplit=1)
            if len(parts) != 2:
                raise errdefs.InvalidArgument(f'invalid --security-opt 1: "{option}"')
            key, value = parts
            match key:
                case "seccomp":
                    seccomp = value
                case "apparmor":
                    apparmor = self._apparmor(value)
                case "label" if value == "disable":
                    pass  # there is no labelling to switch off
                case "label":
                    raise errdefs.NotImplementedHere(f"SELinux labels are not implemented: {option}")
                case "no-new-privileges" if value.lower() in ("true", "1", "t", "false", "0", "f"):
                    no_new_privileges = value.lower() in ("true", "1", "t")
                case "writable-cgroups":
                    raise errdefs.NotImplementedHere(f"{option} is not implemented")
                case _:
                    raise errdefs.InvalidArgument(f'invalid --security-opt 2: "{option}"')
        return Asked(seccomp, apparmor, no_new_privileges)

    def _apparmor(self, profile: str) -> str:
        # Docker accepts any profile where the host has no AppArmor; a container then runs with none.
        if self._host.apparmor or profile == "unconfined":
            return profile
        raise errdefs.InvalidArgument(f"AppArmor is not enabled on this host: apparmor={profile}")
