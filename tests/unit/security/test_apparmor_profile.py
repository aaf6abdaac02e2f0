"""The text of docker-default, with and without the host's shared parts."""

from __future__ import annotations

from pathlib import Path

from dockerd_api import security


def test_profile_stands_alone(tmp_path: Path) -> None:
    text = security.profile_text(folder=str(tmp_path), daemon="dockerd-api")
    assert text.startswith("@{PROC}=/proc/\n")
    assert 'profile "docker-default" flags=(attach_disconnected,mediate_deleted) {' in text
    assert 'signal (receive) peer="dockerd-api",' in text
    assert "deny mount," in text
    assert "include" not in text


def test_profile_uses_what_the_host_has(tmp_path: Path) -> None:
    for name in ("abi/3.0", "tunables/global", "abstractions/base"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    text = security.profile_text("other", folder=str(tmp_path))
    assert text.startswith("abi <abi/3.0>,\n#include <tunables/global>\n")
    assert "#include <abstractions/base>" in text
    assert 'ptrace (trace,tracedby,read,readby) peer="other",' in text
