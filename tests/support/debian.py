"""A Debian root and a folder of wheels for the tests that boot a machine; made once, kept in a cache folder.

The root is of the host's own release, so that wheels built on the host fit its interpreter.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("BUOY_TEST_CACHE", "/var/cache/buoy-tests"))

PACKAGES = (
    "systemd,systemd-sysv,dbus,make,python3,python3-venv,libseccomp2,libnftables1,nftables,tini,busybox-static,"
    "procps,iproute2,curl,kmod,criu,iptables"
)


def os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def mirror() -> str | None:
    """The mirror that this host installs from, or None to let debootstrap choose."""
    places = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for place in places:
        if place.is_file():
            found = re.search(r"https?://[^ \n]+/(?:debian|ubuntu)/?(?=[ \n])", place.read_text())
            if found and "security" not in found.group():
                return found.group()
    return None


@contextmanager
def building(name: str) -> Iterator[Path]:
    """The cache entry `name` under a lock, so that two test runs at once build it once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CACHE / name


def debian_root() -> Path:
    """Path of a root with systemd and what `make install` needs; takes about a minute the first time."""
    release = os_release()
    key = hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]
    with building(f"root-{release['VERSION_CODENAME']}-{key}") as root:
        if (root / ".built").exists():
            return root
        shutil.rmtree(root, ignore_errors=True)
        command = [
            "debootstrap",
            "--variant=minbase",
            f"--include={PACKAGES}",
            release["VERSION_CODENAME"],
            str(root),
        ]
        where = mirror()
        with open(f"{root}.log", "wb") as log:
            subprocess.run(command + ([where] if where else []), check=True, stdout=log, stderr=log)
        (root / ".built").touch()
        return root


def wheels() -> Path:
    """A folder with a wheel of each pinned dependency, built or downloaded on the host."""
    constraints = REPO / "constraints.txt"
    settings = constraints.read_bytes() + (REPO / "pyproject.toml").read_bytes()
    key = hashlib.sha256(settings).hexdigest()[:8]
    with building(f"wheels-{key}") as folder:
        if (folder / ".built").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(REPO / ".venv/bin/python"), "-m", "pip", "wheel", "-q", "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "-w", str(folder), "-c", str(constraints), str(REPO), "setuptools"],
            check=True,
            cwd=folder.parent,
        )
        for own in folder.glob("buoy-*.whl"):
            own.unlink()
        (folder / ".built").touch()
        return folder
