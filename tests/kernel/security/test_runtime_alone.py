"""Known holes of runtimes, each tried on the runtime's command line alone (docs/security.md names them)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.runtime.bundle import Bundle

pytestmark = pytest.mark.root

PYTHON = os.path.realpath(sys.executable)
ST_RDONLY = 1


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    made = Bundle(tmp_path)
    try:
        yield made
    finally:
        made.close()


def created(bundle: Bundle) -> int:
    """The pid of the init of a container that is created and not started: our interpreter runs there."""
    container_id, null = bundle.new_id(), subprocess.DEVNULL
    words = bundle.command("create", container_id)
    subprocess.run(words, stdin=null, stdout=null, stderr=null, cwd=bundle.folder, check=True, timeout=30)
    return int(bundle.state(container_id)["pid"])


def test_the_interpreter_cannot_be_overwritten(bundle: Bundle) -> None:
    """CVE-2019-5736: not even root of the host writes to what /proc/<pid>/exe of a container's init shows."""
    pid = created(bundle)
    assert os.statvfs(f"/proc/{pid}/exe").f_flag & ST_RDONLY
    with pytest.raises(OSError, match=r"Read-only file system|Text file busy"):
        os.open(f"/proc/{pid}/exe", os.O_WRONLY)


def test_an_init_in_a_user_namespace_is_not_dumpable(bundle: Bundle) -> None:
    """CVE-2016-9962: what is not dumpable belongs to root in /proc, and its own user may not trace it."""
    first = 200000
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = [{"containerID": 0, "hostID": first, "size": 1000}]
    bundle.linux["gidMappings"] = bundle.linux["uidMappings"]
    os.chown(bundle.rootfs, first, first)
    pid = created(bundle)
    assert f"Uid:\t{first}\t" in Path(f"/proc/{pid}/status").read_text()
    assert os.stat(f"/proc/{pid}/fd").st_uid == 0
    user = {"user": first, "group": first, "extra_groups": []}
    done = subprocess.run(["ls", f"/proc/{pid}/fd"], capture_output=True, text=True, **user)  # type: ignore[call-overload]
    assert "Permission denied" in done.stderr


def test_no_descriptor_of_the_caller_s_gets_in(bundle: Bundle) -> None:
    """CVE-2024-21626: the runtime's own and those that its caller has left open, in `run` and in `exec`."""
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        open_fds = bundle.run("ls", "/proc/self/fd", pass_fds=(root,)).stdout.split()
        assert open_fds == ["0", "1", "2", "3"]  # the last is that of ls itself
        container_id, _ = bundle.start("sleep", "60")
        words = ("exec", container_id, "ls", "/proc/self/fd")
        assert bundle.call(*words, pass_fds=(root,)).stdout.split() == open_fds
        assert bundle.call("exec", container_id, "ls", "/proc/1/fd").stdout.split() == open_fds[:3]
    finally:
        os.close(root)


@pytest.mark.parametrize("place", ["/proc/self/fd/{}", "/proc/self/fd/{}/..", "/dev/fd/{}"])
def test_no_working_directory_is_outside(bundle: Bundle, place: str) -> None:
    """CVE-2024-21626: a directory outside has no path, of which the kernel says `(unreachable)`."""
    container_id, _ = bundle.start("sleep", "60")
    for number in range(3, 12):
        bundle.process["cwd"] = place.format(number)
        for done in (
            bundle.run("readlink", "/proc/self/cwd", check=False),
            bundle.call(
                "exec", "--cwd", place.format(number), container_id, "readlink", "/proc/self/cwd", check=False
            ),
        ):
            assert done.returncode != 0 or done.stdout.startswith("/"), place.format(number)


def test_further_processes_inherit_no_capability(bundle: Bundle) -> None:
    """CVE-2022-29162: neither the container's own nor those that `exec --cap` adds."""
    container_id, _ = bundle.start("sleep", "60")
    for words in ((), ("--cap", "CAP_SYS_ADMIN")):
        done = bundle.call("exec", *words, container_id, "grep", "CapInh", "/proc/self/status")
        assert done.stdout.split() == ["CapInh:", "0" * 16]


@pytest.mark.parametrize("kind", ["fifo", "endless", "long"])
def test_a_passwd_file_that_does_not_end(bundle: Bundle, kind: str) -> None:
    """CVE-2026-47262: HOME is looked up in the image's file, within bounds."""
    path = bundle.rootfs / "etc/passwd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 30)
    bundle.process["env"] = ["PATH=/bin"]
    began = time.monotonic()
    assert bundle.run("env").stdout.splitlines()[-1] == "HOME=/"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("user", ["4294967296", "4294967295", "-1", "0x0", "+0", "00", "0 ", "root", "0:-1"])
def test_users_that_are_no_numbers_of_users(bundle: Bundle, user: str) -> None:
    """CVE-2024-40635: none of them becomes user 0."""
    container_id, _ = bundle.start("sleep", "60")
    done = bundle.call("exec", f"--user={user}", container_id, "id", check=False)
    assert done.returncode == 255
    assert "bad uid" in done.stderr or "bad gid" in done.stderr


def test_no_way_to_a_release_agent(bundle: Bundle) -> None:
    """CVE-2022-0492: the hierarchies are mounted read-only, and others cannot be mounted."""
    script = (
        "cd /sys/fs/cgroup; for f in release_agent */release_agent */notify_on_release x */x;"
        " do (echo x >$f) 2>/dev/null && echo wrote $f; done;"
        " mount -t cgroup -o memory none /tmp 2>/dev/null && echo mounted; true"
    )
    (bundle.rootfs / "tmp").mkdir()
    assert bundle.run("sh", "-c", script).stdout == ""
