"""Capabilities by Docker's rules."""

from __future__ import annotations

import errdefs
import pytest
from dockerd_api import security
from dockerd_api.security.capability_set import NAMES


def test_default_mask_is_docker_s() -> None:
    # CapEff of a default container of the real engine: 00000000a80425fb
    assert sum(1 << NAMES.index(name) for name in security.capabilities([], [], False)) == 0xA80425FB


def test_add_and_drop() -> None:
    got = security.capabilities(["net_admin", "CAP_CHOWN"], ["kill"], False)
    assert "CAP_NET_ADMIN" in got
    assert got.count("CAP_CHOWN") == 1
    assert "CAP_KILL" not in got
    assert len(got) == len(security.default_capabilities())


def test_all() -> None:
    everything = list(security.available_capabilities())
    assert security.capabilities(["ALL"], ["chown"], False) == [
        name for name in everything if name != "CAP_CHOWN"
    ]
    assert security.capabilities(["kill"], ["all"], False) == ["CAP_KILL"]
    assert security.capabilities([], ["ALL"], False) == []
    assert security.capabilities([], ["chown"], True) == everything


@pytest.mark.parametrize(("add", "drop", "field"), [(["foo"], [], "CapAdd"), ([], ["foo"], "CapDrop")])
@pytest.mark.parametrize("privileged", [False, True])
def test_unknown_capability(add: list[str], drop: list[str], field: str, privileged: bool) -> None:
    with pytest.raises(errdefs.InvalidArgument) as caught:
        security.capabilities(add, drop, privileged)
    assert caught.value.message == f'invalid {field}: unknown capability: "CAP_FOO"'
