"""A volume and an image swap a directory for a link while containers start (CVE-2021-30465, CVE-2024-45310).

What is swapped is the parent of a target, the way that another container with the same volume can. Whatever a
start meets, nothing is mounted, made or changed outside of the container's root.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from linux import mounts as m

from tests.kernel.runtime.bundle import SERVICES, Bundle

pytestmark = pytest.mark.root

STARTS = 100
SECONDS = 4

# Starts one container after the other from a warm process, as a shim does, and says how each went.
STARTER = """
import os, sys, time
from runc_bin.libcontainer import container, create, spec, warmth
bundle, root, name, starts, seconds = sys.argv[1:]
warmth.warm()
end = time.monotonic() + float(seconds)
for number in range(int(starts)):
    if time.monotonic() > end:
        break
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            read = spec.load_spec(bundle)
            record = create.create(root, f"{name}-{number}", read, create.CreateOptions(bundle=bundle))
            container.start(root, record)
            os.waitpid(record.init_process_pid, 0)
            container.delete(root, record.id, force=True)
            code = 0
        except Exception as error:
            print("failed:", error, flush=True)
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] == 0:
        print("started", flush=True)
"""

# Swaps pairs of names until its input ends, and says how often. After 48 rounds all is where it was, for
# a few milliseconds: else no start would ever succeed.
SWAPPER = """
import ctypes, select, sys
libc = ctypes.CDLL(None)
pairs = [(a.encode(), b.encode()) for a, b in (word.split("=") for word in sys.argv[1:])]
count = 0
print("ready", flush=True)
while not select.select([0], [], [], 0.003)[0]:
    for _ in range(48):
        for a, b in pairs:
            libc.renameat2(-100, a, -100, b, 2)
        count += 1
print(count)
"""


def holdings(folder: Path) -> list[tuple[str, int, int, int]]:
    """Everything below a folder: path, mode, owner, size."""
    found = []
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            info = os.lstat(os.path.join(path, name))
            found.append((os.path.join(path, name), info.st_mode, info.st_uid, info.st_size))
    return sorted(found)


def test_nothing_comes_out_of_the_root(bundle: Bundle, tmp_path: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("the C library has no renameat2")
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "file").write_text("canary")
    before = holdings(outside)
    mounted = {(p.target, p.fstype) for p in m.mount_table()}
    volume = tmp_path / "volume"
    pairs = []
    for base in (volume, bundle.rootfs / "image"):
        (base / "target/deep").mkdir(parents=True)
        (base / "target/file").touch()
        (base / "link").symlink_to(f"../../../../../../../../../..{outside}")
        pairs.append(f"{base / 'target'}={base / 'link'}")
    (volume / "other").symlink_to("/proc/self/root/proc/1")
    pairs.append(f"{volume / 'link'}={volume / 'other'}")
    bundle.spec["root"]["readonly"] = False
    bundle.spec["mounts"].append({"destination": "/vol", "source": str(volume), "options": ["rbind"]})
    for target in ("/vol/target", "/image/target"):
        bundle.spec["mounts"] += [
            {"destination": f"{target}/new/dir", "type": "tmpfs", "source": "t", "options": ["mode=707"]},
            {"destination": f"{target}/deep", "source": "/etc", "options": ["rbind", "ro"]},
            {"destination": f"{target}/file", "source": "/etc/hostname", "options": ["bind"]},
            {"destination": f"{target}/more/made", "source": "/etc/hostname", "options": ["bind"]},
        ]
        device = {"path": f"{target}/null", "type": "c", "major": 1, "minor": 3, "uid": 7, "fileMode": 0o640}
        bundle.linux.setdefault("devices", []).append(device)
        bundle.linux["maskedPaths"].append(f"{target}/deep/passwd")
        bundle.linux["readonlyPaths"].append(f"{target}/file")
    bundle.process["args"] = ["true"]
    (bundle.folder / "config.json").write_text(json.dumps(bundle.spec))
    bundle.root.mkdir()
    words = [sys.executable, "-ISc"]
    with subprocess.Popen([*words, SWAPPER, *pairs], stdin=-1, stdout=-1, text=True) as swapper:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == "ready\n"
        name = bundle.new_id()
        starter = f"import sys; sys.path.insert(0, {str(SERVICES)!r})\n{STARTER}"
        numbers = [str(STARTS), str(SECONDS)]
        done = subprocess.run(
            [*words, starter, str(bundle.folder), str(bundle.root), name, *numbers],
            capture_output=True,
            text=True,
            timeout=60,
        )
        swaps = int(swapper.communicate("\n", timeout=20)[0])
    lines = done.stdout.splitlines()
    assert "started" in lines, done.stdout + done.stderr
    assert swaps > 1000
    assert holdings(outside) == before
    assert (outside / "file").read_text() == "canary"
    assert not {(p.target, p.fstype) for p in m.mount_table() if str(tmp_path) in p.target} - mounted
