"""CVE-2019-5736: what runs the engine cannot be overwritten from a container that is made to execute it, or
that looks at it while it enters.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from linux import interpreter

from tests.daemon.security.images import PYTHON, WITH_PYTHON
from tests.support.engine import SERVICES, Engine

pytestmark = pytest.mark.root


def digests(engine: Engine) -> dict[str, str]:
    """sha256 of the interpreter, of all that is mapped into the engine's processes, and of our modules."""
    paths = {PYTHON, *map(str, Path(interpreter.__file__).parents[1].rglob("*.py"))}
    for service in SERVICES:
        for line in Path(f"/proc/{engine.pid(service)}/maps").read_text().splitlines():
            path = "/" + line.partition("/")[2]
            if ".so" in path and os.path.isfile(path):
                paths.add(path)
    assert any("libc.so" in path for path in paths)
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


OVERWRITE = """
import errno, os
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
    try:
        os.open("/proc/self/exe", flags)
        print("opened", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
kept = os.open("/proc/self/exe", os.O_RDONLY)
os.set_inheritable(kept, True)
# Another program runs now, so that here the file is not busy any more.
script = "exec 2>&1; chmod 777 /proc/self/fd/%d; touch /proc/self/fd/%d; echo x >> /proc/self/fd/%d; true"
os.execv("/bin/sh", ["sh", "-c", script.replace("%d", str(kept))])
"""


@pytest.mark.parametrize("how", ["entrypoint", "script", "exec"])
def test_a_program_that_is_the_runtime_itself(engine: Engine, how: str) -> None:
    before = digests(engine)
    if how == "entrypoint":
        command = ("run", "--rm", *WITH_PYTHON, "--entrypoint", "/proc/self/exe", "busybox", "-c", OVERWRITE)
    else:
        script = f"printf '#!/proc/self/exe\\n' > /bin/evil; cat >> /bin/evil <<'EOF'\n{OVERWRITE}\nEOF\n"
        container = engine.out("run", "-d", *WITH_PYTHON, "busybox", "sh", "-c", f"{script}sleep 60")
        engine.out("exec", container, "sh", "-c", "chmod 755 /bin/evil")
        program = ("/bin/evil",) if how == "script" else ("/proc/self/exe", "-c", OVERWRITE)
        command = ("exec", container, *program)
    lines = engine.out(*command).splitlines()
    # To open it is refused as busy before it is as read-only; the shim runs from it all the time.
    assert len(lines) == 7
    assert set(lines[:4]) <= {"EROFS", "ETXTBSY"}
    assert all("Read-only file system" in line for line in lines[4:6])
    assert "Read-only file system" in lines[6] or "Text file busy" in lines[6]
    assert digests(engine) == before


RACE = """
import errno, os, stat
own = os.stat("/").st_dev
known = {name for name in os.listdir("/proc") if name.isdigit()}
refused, opened = set(), []
print("ready", flush=True)

def attempt(path, flags, host_has):
    try:
        fd = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
            refused.add(path)
        return
    try:
        status = os.fstat(fd)
        # Else it is the program that was asked for already, and what it has is the container's own.
        if status.st_dev != own and host_has(status.st_mode):
            opened.append((path, os.readlink(f"/proc/self/fd/{fd}")))
    finally:
        os.close(fd)

def names(path):
    try:
        return os.listdir(path)
    except OSError:
        return []

def on_disk(mode):
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)

while not os.path.exists("/stop"):
    for pid in set(filter(str.isdigit, os.listdir("/proc"))) - known:
        attempt(f"/proc/{pid}/exe", os.O_WRONLY, on_disk)
        for name in names(f"/proc/{pid}/map_files"):
            attempt(f"/proc/{pid}/map_files/{name}", os.O_WRONLY, on_disk)
        for kind in ("root", "cwd"):
            attempt(f"/proc/{pid}/{kind}/.", os.O_RDONLY | os.O_DIRECTORY, on_disk)
        for name in names(f"/proc/{pid}/fd"):
            attempt(f"/proc/{pid}/fd/{name}", os.O_RDONLY, on_disk)
print(len(refused))
print(*opened[:9], sep="\\n")
"""


@pytest.mark.parametrize("options", [(), ("--cap-add", "SYS_PTRACE")])
def test_a_container_that_watches_who_enters_it(engine: Engine, options: tuple[str, ...]) -> None:
    before = digests(engine)
    container = engine.out("run", "-d", *options, *WITH_PYTHON, "busybox", PYTHON, "-c", RACE)
    engine.until("the watcher", lambda: "ready" in engine.out("logs", container))
    for _ in range(8):
        engine.out("exec", container, "/bin/true")
    engine.out("exec", container, "/bin/touch", "/stop")
    engine.out("wait", container)
    ready, refused, *opened = engine.out("logs", container).splitlines()
    assert ready == "ready"
    assert int(refused) > 0, "nobody was seen on the way in"
    assert not opened
    assert digests(engine) == before


EVERYBODY = """
import os, sys
for pid in sys.argv[1:]:
    try:
        os.listdir(f"/proc/{pid}/map_files")
        print("listed", pid)
    except PermissionError:
        print("refused")
    for name in ("exe", "root/.", "cwd/.", "fd/0"):
        try:
            os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
            print("opened", pid, name)
        except PermissionError:
            print("refused")
"""


def test_a_container_in_the_host_s_pid_namespace(engine: Engine) -> None:
    container = engine.out("run", "-d", "--pid", "host", *WITH_PYTHON, "busybox", "sleep", "60")
    init = engine.inspect(container)["State"]["Pid"]
    shim = Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1]
    pids = (*(str(engine.pid(service)) for service in SERVICES), shim)
    lines = engine.out("exec", container, PYTHON, "-c", EVERYBODY, *pids).splitlines()
    assert lines == ["refused"] * 5 * len(pids)
