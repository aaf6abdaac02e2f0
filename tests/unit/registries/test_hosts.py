"""The settings of registries as containerd reads them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from dockerd_api.registries import Registries
from dockerd_api.registries.hosts import Hosts


async def written(registries: Registries, registry: str, place: Path) -> dict[str, Any]:
    folder = await Hosts(registries, place).directory_for(registry)
    assert folder == str(place)
    [file] = place.glob("*/hosts.toml")
    found = tomllib.loads(file.read_text())
    assert file.parent.name == registry.replace(":5000", "_5000_")
    return found


async def test_nothing_is_set(tmp_path: Path) -> None:
    hosts = Hosts(Registries(certs_dir=tmp_path / "certs"), tmp_path / "hosts")
    assert await hosts.directory_for("192.0.2.1:5000") == ""
    assert not (tmp_path / "hosts").exists()


async def test_mirrors(tmp_path: Path) -> None:
    registries = Registries(
        mirrors=["https://192.0.2.1/a", "http://127.0.0.1:1"], certs_dir=tmp_path / "certs"
    )
    found = await written(registries, "docker.io", tmp_path / "hosts")
    reads = ["pull", "resolve"]
    assert found == {
        "server": "https://registry-1.docker.io",
        "host": {
            "https://192.0.2.1/a": {"capabilities": reads},
            "http://127.0.0.1:1": {"capabilities": reads},
        },
    }


async def test_insecure(tmp_path: Path) -> None:
    registries = Registries(certs_dir=tmp_path / "certs")
    found = await written(registries, "127.0.0.1:5000", tmp_path / "hosts")
    assert found == {"server": "http://127.0.0.1:5000", "skip_verify": True}


async def test_certificates(tmp_path: Path) -> None:
    certs = tmp_path / "certs" / "192.0.2.1:5000"
    certs.mkdir(parents=True)
    for name in ("ca.crt", "me.cert", "me.key"):
        (certs / name).touch()
    registries = Registries(certs_dir=tmp_path / "certs")
    found = await written(registries, "192.0.2.1:5000", tmp_path / "hosts")
    assert found == {
        "server": "https://192.0.2.1:5000",
        "ca": [f"{certs}/ca.crt"],
        "client": [[f"{certs}/me.cert", f"{certs}/me.key"]],
    }
    (certs / "hosts.toml").touch()  # the administrator's own
    hosts = Hosts(registries, tmp_path / "others")
    assert await hosts.directory_for("192.0.2.1:5000") == str(tmp_path / "certs")
