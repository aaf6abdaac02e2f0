"""What the engine knows of a container and of an exec: frozen records, replaced as a whole, stored as JSON.

`Phase` is the closed list of a container's states. The words that the API shows are derived from it, so
that no two of them can disagree.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

ZERO_TIME = "0001-01-01T00:00:00Z"


def now_rfc3339() -> str:
    """The current time as Docker writes it: UTC, nine digits of fraction."""
    return rfc3339(datetime.now(UTC))


def rfc3339(moment: datetime) -> str:
    """An aware time as Docker writes it: UTC, nine digits of fraction, `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def _shallow(record: Any) -> dict[str, Any]:
    # dataclasses.asdict copies every part of every part, for a text that is made of it at once.
    return {name: getattr(record, name) for name in record.__slots__}


class Phase(enum.StrEnum):
    """A container's life. CREATING, STARTING and REMOVING are intents: start-up finishes or undoes them.

    GONE is what clients do not see any more while what it held is given back.
    """

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    EXITED = "exited"
    REMOVING = "removing"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class State:
    """`pid` is 0 unless a process lives; times are RFC 3339; `error` is the last start's failure."""

    phase: Phase = Phase.CREATING
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: str = ZERO_TIME
    finished_at: str = ZERO_TIME
    # What STARTING came from, so that an undone start leaves the container as it was.
    before: Phase = Phase.CREATED

    @property
    def status(self) -> str:
        """Docker's word: created, running, paused, restarting, removing or exited."""
        match self.phase:
            case Phase.CREATING:
                return "created"
            case Phase.STARTING:
                return self.before.value
        return self.phase.value

    @property
    def running(self) -> bool:
        """True while a process lives or policy is about to start one again, as Docker has it."""
        return self.phase in (Phase.RUNNING, Phase.PAUSED, Phase.RESTARTING)

    @property
    def alive(self) -> bool:
        """True while a process exists."""
        return self.phase in (Phase.RUNNING, Phase.PAUSED)

    @property
    def paused(self) -> bool:
        return self.phase is Phase.PAUSED

    @property
    def restarting(self) -> bool:
        return self.phase is Phase.RESTARTING

    @property
    def dead(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Container:
    """One container as the engine records it.

    `config`, `host_config` and `networking` hold the API's documents with every known field present
    (engine/options); `mounts` the API's MountPoint documents; `network_settings` the part of inspect that
    an attachment filled.
    """

    id: str
    name: str  # without the leading slash
    created: str
    path: str
    args: tuple[str, ...]
    config: dict[str, Any]
    host_config: dict[str, Any]
    networking: dict[str, Any]
    image_id: str
    image_ref: str
    log_path: str = ""
    platform: str = "linux"
    state: State = field(default_factory=State)
    mounts: tuple[dict[str, Any], ...] = ()
    network_settings: dict[str, Any] = field(default_factory=dict)
    restart_count: int = 0
    manually_stopped: bool = False
    # How many tasks the container has had; the number of the present or last one is `runs - 1`.
    runs: int = 0
    boot_id: str = ""
    # The time of the last fact of containerd that was applied to it, and the time at which we last froze or
    # thawed it ourselves (microseconds since 1970): earlier facts are old news.
    last_fact: int = 0
    frozen_at: int = 0
    # A task, a network or containerd's record may have to be given back (engine/release).
    cleanup_due: bool = False
    # The attach socket that the present task was created with.
    attach_socket: str = ""
    mount_label: str = ""
    process_label: str = ""
    apparmor_profile: str = ""
    # The descriptor of the manifest that was chosen for its platform, as the API shows it.
    image_manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def tty(self) -> bool:
        return bool(self.config.get("Tty"))

    @property
    def labels(self) -> Mapping[str, str]:
        return self.config.get("Labels") or {}

    @property
    def auto_remove(self) -> bool:
        return bool(self.host_config.get("AutoRemove"))

    @property
    def restart_policy(self) -> tuple[str, int]:
        """Name ("no", "always", "unless-stopped", "on-failure") and the most restarts (0: no limit)."""
        policy = self.host_config.get("RestartPolicy") or {}
        return policy.get("Name") or "no", int(policy.get("MaximumRetryCount") or 0)

    @property
    def log_driver(self) -> str:
        return str((self.host_config.get("LogConfig") or {}).get("Type") or "json-file")

    @property
    def log_kept(self) -> bool:
        """Whether what it says can be read afterwards."""
        return self.log_driver != "none"

    @property
    def log_options(self) -> Mapping[str, str]:
        return (self.host_config.get("LogConfig") or {}).get("Config") or {}

    def with_state(self, **changes: Any) -> Self:
        """A copy whose state has the changes."""
        return dataclasses.replace(self, state=dataclasses.replace(self.state, **changes))

    def to_json(self) -> dict[str, Any]:
        """The record as a document, whose parts are still the record's own."""
        return {**_shallow(self), "state": _shallow(self.state)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The record back from `to_json`'s document; fields that this version does not know are dropped."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {key: value for key, value in document.items() if key in known}
        state = dict(values.pop("state"))
        state["phase"], state["before"] = Phase(state["phase"]), Phase(state["before"])
        values["args"] = tuple(values["args"])
        values["mounts"] = tuple(values["mounts"])
        return cls(state=State(**state), **values)


@dataclass(frozen=True, slots=True)
class Exec:
    """One further process of a container. `exit_code` is None until it has exited."""

    id: str
    container_id: str
    # Docker's ExecConfig with every known field present.
    config: dict[str, Any]
    started: bool = False
    running: bool = False
    pid: int = 0
    exit_code: int | None = None

    @property
    def tty(self) -> bool:
        return bool(self.config.get("Tty"))

    def to_json(self) -> dict[str, Any]:
        return _shallow(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in document.items() if key in known})


@dataclass(frozen=True, slots=True)
class Fact:
    """Where something that containerd reported stands in its event stream, in microseconds since 1970.

    `cursor` is the time of the last fact before which none is unapplied, once this one is; it is stored with
    the fact's effect.
    """

    time: int
    cursor: int


@dataclass(frozen=True, slots=True)
class WaitOutcome:
    """What a waiter is told: the exit code, and why a removal failed ("" when all went well)."""

    status_code: int
    error: str = ""
