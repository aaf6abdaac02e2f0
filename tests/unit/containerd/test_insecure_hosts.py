"""hosts.toml of a registry that need not be trusted: TLS comes first, as containerd has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from containerd_svc.registry.hosts import hosts_of


@pytest.mark.parametrize(
    ("address", "text", "expected"),
    [
        ("a.example:5000", "skip_verify = true", ("https", True)),
        ("a.example", "skip_verify = true", ("https", True)),
        ("a.example:80", "skip_verify = true", ("http", False)),
        ("a.example:5000", "", ("http", False)),
    ],
)
def test_http_with_settings_of_tls(
    address: str, text: str, expected: tuple[str, bool], tmp_path: Path
) -> None:
    folder = tmp_path / address
    folder.mkdir()
    (folder / "hosts.toml").write_text(f'server = "http://{address}"\n{text}\n')
    [host] = hosts_of(address, str(tmp_path))
    assert (host.scheme, host.try_plain) == expected
