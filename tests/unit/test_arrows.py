"""Imports run one way through the house: this reads every import and names those that run the other way."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVICES = Path(__file__).resolve().parents[2] / "services"

GROUND = {"container_log", "errdefs", "http_client", "linux", "pb", "rpc", "storage"}
# What a package may import of ours besides itself.
PACKAGES: dict[str, set[str]] = {
    "container_log": set(),
    "errdefs": set(),
    "http_client": {"errdefs"},
    "linux": set(),
    "pb": set(),
    "rpc": {"errdefs", "pb", "linux"},
    "storage": {"errdefs", "linux"},
    "runc_bin": {"errdefs", "linux"},
    "shim_svc": {"container_log", "errdefs", "linux", "pb", "rpc", "runc_bin"},
    "containerd_svc": GROUND,
    "dockerd_api": GROUND,
    "launcher": {"linux"},
}
# Inside dockerd_api: what a room may import of its sisters. Rooms are folders, or files at the top.
DOCKERD_ROOMS: dict[str, set[str]] = {
    "security": set(),
    "network": set(),
    "streams": {"hijack"},
    "registries": {"config"},
    "images": {"registries"},
    "engine": {"images", "network", "security", "streams", "config"},
    "replies": {"engine", "streams"},
    "schemas": {"config", "engine"},
    "routes": {"engine", "images", "network", "registries", "replies", "schemas", "streams", "hijack"},
}
CONTAINERD_ROOMS: dict[str, set[str]] = {
    "snapshots": {"events", "filters", "labels", "leases", "namespaces", "syncfs"},
}


def modules() -> list[Path]:
    return [p for p in SERVICES.rglob("*.py") if p.relative_to(SERVICES).parts[0] != "pb"]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a file imports, relative imports resolved."""
    package = path.relative_to(SERVICES).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            if node.module:
                base += node.module.split(".")
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def test_packages_import_only_downwards() -> None:
    wrong = []
    for path in modules():
        owner = path.relative_to(SERVICES).parts[0]
        for line, name in imports(path):
            top = name.split(".")[0]
            if top in PACKAGES and top != owner and top not in PACKAGES[owner]:
                wrong.append(f"{path.relative_to(SERVICES)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("package", "rooms"), [("dockerd_api", DOCKERD_ROOMS), ("containerd_svc", CONTAINERD_ROOMS)]
)
def test_rooms_import_only_downwards(package: str, rooms: dict[str, set[str]]) -> None:
    wrong = []
    for path in (SERVICES / package).rglob("*.py"):
        parts = path.relative_to(SERVICES / package).with_suffix("").parts
        if parts[0] not in rooms or len(parts) == 1:
            continue
        for line, name in imports(path):
            target = name.split(".")
            if target[0] != package or len(target) < 2 or target[1] == parts[0]:
                continue
            if target[1] not in rooms[parts[0]]:
                wrong.append(f"{path.relative_to(SERVICES)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_package_is_known() -> None:
    found = {p.name for p in SERVICES.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert found == set(PACKAGES)


def test_the_bottom_is_standard_library_only() -> None:
    bottom = ("container_log", "errdefs", "launcher", "linux", "runc_bin")
    wrong = [
        f"{path.relative_to(SERVICES)}:{line} imports {name}"
        for package in bottom
        for path in (SERVICES / package).rglob("*.py")
        for line, name in imports(path)
        if name.split(".")[0] not in sys.stdlib_module_names and name.split(".")[0] not in bottom
    ]
    assert not wrong, "\n".join(wrong)
