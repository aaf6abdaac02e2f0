"""Switching to an AppArmor profile at exec; an image that has put something else where procfs should be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dockerd_api import security
from linux import apparmor as host
from runc_bin.libcontainer import apparmor

SERVICES = str(Path(apparmor.__file__).parents[2])

COVERED = """
import os, sys
sys.path.insert(0, {services!r})
from errdefs import Internal
from linux import syscalls
from runc_bin.libcontainer import apparmor
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("none", "/", "", 0x44000)  # MS_REC | MS_PRIVATE
{cover}
try:
    apparmor.apply_exec("docker-default")
except Internal as error:
    print(error.message)
"""


def covered(cover: str) -> str:
    script = COVERED.format(services=SERVICES, cover=cover)
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.root
def test_other_file_system_on_proc_is_refused() -> None:
    got = covered("syscalls.mount('tmpfs', '/proc', 'tmpfs', 0)")
    assert got == "apparmor failed to apply profile: /proc is not procfs"


@pytest.mark.root
def test_another_part_of_procfs_on_proc_is_refused() -> None:
    got = covered("syscalls.mount('/proc/sys', '/proc', '', 4096)")  # MS_BIND
    assert got == "apparmor failed to apply profile: /proc is not procfs"


@pytest.mark.root
def test_mount_on_the_way_is_refused() -> None:
    got = covered("syscalls.mount('/proc/self/task', f'/proc/{os.getpid()}/task', '', 4096)")
    assert got == "apparmor failed to apply profile: invalid cross-device link"


def test_no_profile_is_nothing_to_do() -> None:
    apparmor.apply_exec("")


@pytest.mark.skipif(host.enabled(), reason="the host has AppArmor")
def test_host_without_apparmor() -> None:
    assert not apparmor.enabled()
    assert not security.load_default_profile()


@pytest.mark.root
@pytest.mark.skipif(not host.enabled(), reason="the host has no AppArmor")
def test_default_profile_confines() -> None:
    assert security.load_default_profile()
    assert host.loaded("docker-default")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(writer, 1)
            apparmor.apply_exec("docker-default")
            os.execv("/bin/sh", ["sh", "-c", "cat /proc/self/attr/current; cat /proc/kcore || echo refused"])
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    os.waitpid(child, 0)
    assert lines == ["docker-default (enforce)", "refused"]
