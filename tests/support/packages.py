"""Packages of the distribution that tests start without installing them: unpacked once, kept in the cache
folder.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.debian import building, mirror, os_release

# Debian 12 has containerd 1.6, whose client knows less than ours serves, and Docker 20.10; the next release's
# run on it too.
_LATER = {("containerd", "bookworm"): "trixie", ("docker.io", "bookworm"): "trixie"}
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpacked(name: str) -> Path:
    """The folder with the files of the package `name`, of the host's release or of the one that `_LATER`
    names."""
    release = os_release()["VERSION_CODENAME"]
    suite = _LATER.get((name, release), release)
    with building(f"{name}-{suite}") as folder:
        if (folder / ".built").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory() as work:
            options = _apt_of(suite, Path(work)) if suite != release else []
            if options:
                _run(work, "apt-get", "-qq", *options, "update")
            _run(work, "apt-get", "-qq", *options, "download", name)
            _run(work, "dpkg", "-x", *map(str, Path(work).glob("*.deb")), str(folder))
        (folder / ".built").touch()
        return folder


def _apt_of(suite: str, work: Path) -> list[str]:
    """Options that make apt see that release alone, with lists of its own below `work`."""
    (work / "lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    where = mirror() or "http://deb.debian.org/debian"
    (work / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {where} {suite} main\n")
    settings = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::Cache": work / "cache",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _run(work: str, *command: str) -> None:
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
