"""Whether a container whose init has ended is started again, and after how long: Docker's policies, by
labels.

Back-off and reset are those of moby's restartmanager: 100 ms, doubled up to a minute, begun anew after a run
of ten seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

STATUS = "containerd.io/restart.status"
POLICY = "containerd.io/restart.policy"
STOPPED = "containerd.io/restart.explicitly-stopped"
LOG_URI = "containerd.io/restart.loguri"
BOOT_ID = "dev.buoy.restart.boot-id"

_FIRST_MS, _LAST_MS = 100, 60_000
_GOOD_RUN = 10.0  # seconds


@dataclass(frozen=True)
class Decision:
    """`backoff_ms` is the wait before this restart, and the base of the next one's."""

    restart: bool
    backoff_ms: int = 0


def explicitly_stopped(labels: Mapping[str, str]) -> bool:
    """Whether a user stopped the container."""
    return labels.get(STOPPED) == "true"


def decide(
    labels: Mapping[str, str],
    *,
    exit_status: int,
    ran: float,
    restarts: int,
    backoff_ms: int,
    boot_id: str,
    sandbox: Callable[[], bool],
) -> Decision | None:
    """What to do after an exit; None for a container that has no restart labels.

    `ran` is how long it ran in seconds, `restarts` and `backoff_ms` come from the restarts before (0 at
    first), `boot_id` is the host's now, `sandbox` asks whether its network namespace still exists.
    """
    if STATUS not in labels and POLICY not in labels:
        return None
    stay = Decision(False)
    if labels.get(STATUS) != "running" or explicitly_stopped(labels):
        return stay
    if labels.get(BOOT_ID, boot_id) != boot_id:
        return stay
    if not sandbox():
        return stay
    policy, _, most = labels.get(POLICY, "always").partition(":")
    if policy == "on-failure":
        if exit_status == 0 or (most.isdigit() and 0 < int(most) <= restarts):
            return stay
    elif policy not in ("always", "unless-stopped"):
        return stay
    if ran >= _GOOD_RUN or not backoff_ms:
        return Decision(True, _FIRST_MS)
    return Decision(True, min(backoff_ms * 2, _LAST_MS))
