"""The interpreter that runs a command: protected from containers, sealed, and started by quick launchers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from linux import interpreter

SERVICES = str(Path(interpreter.__file__).parent.parent)
CAP_SYS_ADMIN = 21

REPORT = """
import sys

def main():
    from linux import interpreter
    if sys.argv[1:] == ["--version"]:
        return 0
    interpreter.protect_self({run_dir!r})
    import fcntl, json, os
    try:
        # not a write, which ETXTBSY would refuse while the file runs: a change that only the mount refuses
        status = os.stat("/proc/self/exe")
        os.utime("/proc/self/exe", ns=(status.st_atime_ns, status.st_mtime_ns))
        refused = 0
    except OSError as error:
        refused = error.errno
    exe = os.open("/proc/self/exe", os.O_RDONLY)
    try:
        seals = fcntl.fcntl(exe, 1034)
    except OSError:
        seals = None
    name = open("/proc/self/comm").read().strip()
    import sqlite3  # of the standard library, but not built in
    report = [interpreter.protected(), sys.argv[1:], sys.executable, name, refused, seals, dict(os.environ)]
    print(json.dumps(report))
    return 3
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "run"
    yield folder
    if folder.exists():
        interpreter.remove_mounts(str(folder))
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture(params=["plain", "a folder's name"])
def command(request: pytest.FixtureRequest, tmp_path: Path, run_dir: Path) -> Path:
    """A launcher for REPORT, with a link to the interpreter in a folder with an easy or a hard name."""
    folder = tmp_path / request.param
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    (tmp_path / "report.py").write_text(REPORT.format(run_dir=str(run_dir)))
    launcher = tmp_path / "report-cmd"
    launcher.write_text(interpreter.launcher_script(f"{folder}/python", [SERVICES, str(tmp_path)], "report"))
    launcher.chmod(0o755)
    return launcher


def run(*arguments: str | Path) -> list[object]:
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 3, done.stderr
    report: list[object] = json.loads(done.stdout)
    return report


@pytest.mark.root
def test_command_runs_from_a_read_only_mount(command: Path, run_dir: Path) -> None:
    for _ in range(2):
        protected, arguments, executable, name, refused, seals, environment = run(command, "a", "b c")
        assert protected
        assert arguments == ["a", "b c"]
        assert str(executable).endswith("/python")
        assert name in ("report-cmd", "python")  # sh's `exec` names the process after the interpreter
        assert refused == errno.EROFS
        assert seals is None
        assert isinstance(environment, dict)
        assert not [key for key in environment if key.startswith("_BUOY")]
        mounts = [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(run_dir) in line
        ]
        assert len(mounts) == 1


@pytest.mark.root
def test_many_at_once_make_one_mount(command: Path, run_dir: Path) -> None:
    children = [subprocess.Popen([command, str(n)], stdout=subprocess.PIPE) for n in range(8)]
    outputs = [child.communicate(timeout=30)[0] for child in children]
    assert all(json.loads(output)[0] for output in outputs)
    assert Path("/proc/self/mountinfo").read_text().count(str(run_dir)) == 1
    assert len(list(run_dir.iterdir())) == 1


@pytest.mark.root
def test_another_interpreter_s_mount_is_taken_back(command: Path, run_dir: Path) -> None:
    run_dir.mkdir()
    (run_dir / "python-old").touch()
    run(command)
    assert not (run_dir / "python-old").exists()


@pytest.mark.root
def test_without_the_right_to_mount_a_sealed_copy_runs(command: Path, run_dir: Path) -> None:
    drop = f"ctypes.CDLL(None).prctl(24, {CAP_SYS_ADMIN}, 0, 0, 0)"
    script = f"import ctypes, os, sys; {drop}; os.execv(sys.argv[1], sys.argv[1:])"
    protected, arguments, _, _, _, seals, _ = run(sys.executable, "-c", script, command, "x")
    assert protected
    assert arguments == ["x"]
    assert seals == 0xF
    assert list(run_dir.iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(sys.base_prefix not in ("/usr", "/usr/local"), reason="its launchers look at no mounts")
@pytest.mark.parametrize("whose", ["root's", "a user's", "behind a link"])
def test_a_mount_is_taken_only_where_nobody_else_can_change_it(
    tmp_path: Path, run_dir: Path, whose: str
) -> None:
    """The interpreter that the launcher would find is no mount, which Python notices: so it was taken."""
    above = tmp_path / "above"
    mounts = above / "state/@python"
    mounts.mkdir(parents=True)
    (mounts / "python-x").symlink_to(os.path.realpath(sys.executable))
    if whose == "a user's":
        os.chown(above, 12345, 12345)
    if whose == "behind a link":
        (tmp_path / "link").symlink_to(above)
        above = tmp_path / "link"
    (tmp_path / "report.py").write_text(REPORT.format(run_dir=str(run_dir)))
    command = tmp_path / "report-cmd"
    paths = [SERVICES, str(tmp_path)]
    command.write_text(
        interpreter.launcher_script(sys.executable, paths, "report", mounts="/nowhere/@python")
    )
    command.chmod(0o755)
    words = [command, "--root", above / "state"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=20)
    taken = "executed anew, and still is not protected" in done.stderr
    assert (taken, done.returncode == 3) == ((whose == "root's"), (whose != "root's"))


@pytest.mark.root
def test_a_folder_of_somebody_else_s_takes_no_mount(command: Path, run_dir: Path) -> None:
    run_dir.mkdir()
    os.chown(run_dir.parent, 12345, 12345)
    assert run(command)[5] == 0xF
    assert list(run_dir.iterdir()) == []


def test_quick_way_does_not_touch_anything(command: Path, run_dir: Path) -> None:
    assert subprocess.run([command, "--version"], timeout=20).returncode == 0
    assert not run_dir.exists()


SEALED = """
import os, sys
sys.path.insert(0, %r)
from linux import interpreter, syscalls
import json
interpreter.seal()
results = []
imports = ("import sqlite3", "import json", "from json import tool", "import _lsprof")
statements = (*imports, "b'x'.decode('cp437')")
for statement in statements:
    try:
        exec(statement)
        results.append("done")
    except Exception as error:
        results.append(type(error).__name__)
print(json.dumps([results, syscalls.prctl(syscalls.PR_GET_DUMPABLE), sys.path]), flush=True)
raise RuntimeError("the end")
"""


def test_sealed_interpreter_loads_nothing(tmp_path: Path) -> None:
    script = tmp_path / "sealed.py"
    script.write_text(SEALED % SERVICES)
    done = subprocess.run([sys.executable, "-I", script], capture_output=True, text=True, timeout=20)
    results, dumpable, path = json.loads(done.stdout)
    assert results == ["ImportError", "done", "ImportError", "ImportError", "LookupError"]
    assert dumpable == 0
    assert path == []
    # a traceback would read the source by a path that the container may have filled
    assert done.stderr.strip().splitlines()[-1] == "RuntimeError: the end"
    assert "raise RuntimeError" not in done.stderr


def test_launchers_are_written(tmp_path: Path) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "python").symlink_to(sys.executable)
    (bin_dir / "runc-bin").write_text("a pip wrapper")
    paths = interpreter.write_launchers(str(bin_dir))
    assert paths == [str(bin_dir / "runc-bin"), str(bin_dir / "shim-svc")]
    for path, module in zip(paths, ("runc_bin.__main__", "shim_svc.__main__"), strict=True):
        text = Path(path).read_text()
        assert os.stat(path).st_mode & 0o777 == 0o755
        assert text.startswith((f"#!{bin_dir}/python -IS\n", "#!/bin/sh\n"))
        assert f"from {module} import main" in text
        assert SERVICES in text
    assert sorted(os.listdir(bin_dir)) == ["python", "runc-bin", "shim-svc"]
