"""containerd_svc.restart_policy: Docker's policies."""

from __future__ import annotations

from typing import Any

import pytest
from containerd_svc.restart_policy import BOOT_ID, POLICY, STATUS, STOPPED, Decision, decide

USUAL: dict[str, Any] = {
    "exit_status": 1,
    "ran": 0.5,
    "restarts": 0,
    "backoff_ms": 0,
    "boot_id": "b",
    "sandbox": lambda: True,
}


def labels(policy: str, **more: str) -> dict[str, str]:
    return {STATUS: "running", POLICY: policy, BOOT_ID: "b", **more}


@pytest.mark.parametrize(
    ("policy", "change", "restart"),
    [
        ("always", {}, True),
        ("always", {"exit_status": 0}, True),
        ("unless-stopped", {"exit_status": 0}, True),
        ("on-failure", {}, True),
        ("on-failure", {"exit_status": 0}, False),
        ("on-failure:2", {"restarts": 1}, True),
        ("on-failure:2", {"restarts": 2}, False),
        ("on-failure:0", {"restarts": 50}, True),
        ("no", {}, False),
        ("always", {"boot_id": "another"}, False),
        ("always", {"sandbox": lambda: False}, False),
    ],
)
def test_policies(policy: str, change: dict[str, Any], restart: bool) -> None:
    decision = decide(labels(policy), **{**USUAL, **change})
    assert decision is not None
    assert decision.restart is restart


def test_a_user_s_stop_holds() -> None:
    assert decide({**labels("always"), STOPPED: "true"}, **USUAL) == Decision(False)
    assert decide({**labels("always"), STOPPED: "false"}, **USUAL) == Decision(True, 100)


def test_a_container_without_labels_is_nobody_s_business() -> None:
    assert decide({"a": "b"}, **USUAL) is None


def test_the_wait_doubles_up_to_a_minute_and_begins_anew_after_a_good_run() -> None:
    waits = []
    backoff = 0
    for _ in range(12):
        decision = decide(labels("always"), **{**USUAL, "backoff_ms": backoff})
        assert decision is not None
        waits.append(backoff := decision.backoff_ms)
    assert waits == [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]
    decision = decide(labels("always"), **{**USUAL, "backoff_ms": backoff, "ran": 10.0})
    assert decision == Decision(True, 100)
