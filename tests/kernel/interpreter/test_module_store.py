"""The store of a quick command's modules, and its launcher, which starts a mounted interpreter at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from linux import interpreter, module_store_writer

SERVICES = str(Path(interpreter.__file__).parent.parent)
# What a cold command must not pay for. For most there is something of ours: `linux.signals`, `linux.libc`,
# `runc_bin.document`, `runc_bin.contexts`.
SLOW = {
    *("typing", "re", "enum", "json", "signal", "socket", "selectors", "dataclasses", "inspect", "argparse"),
    *("contextlib", "functools", "collections", "types", "ctypes", "array", "resource", "termios"),
}
QUICK = ("create", "delete", "exec", "kill", "run", "start", "state")

SAY = """
from __future__ import annotations

from typing import Any

def main() -> int:
    '''Says which modules it has.'''
    import json, sys
    import word
    value: Any = [word.WORD, type(__spec__.loader).__name__, sorted(sys.modules), main.__doc__]
    print(json.dumps(value))
    return 4
"""


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A command with a store of the modules `say` and `word`."""
    (tmp_path / "say.py").write_text(SAY)
    (tmp_path / "word.py").write_text("WORD = 'first'\n")
    store = tmp_path / "lib/say.modules"
    paths = [str(tmp_path), SERVICES]
    module_store_writer.write(str(store), sys.executable, paths, "import say, word", {})
    made = tmp_path / "say"
    made.write_text(interpreter.launcher_script(sys.executable, paths, "say", str(store)))
    made.chmod(0o755)
    return made


def said(command: Path) -> list[object]:
    done = subprocess.run([command], capture_output=True, text=True, timeout=20)
    assert done.returncode == 4, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


def test_modules_come_from_the_store(command: Path) -> None:
    word, loader, modules, doc = said(command)
    assert (word, loader, doc) == ("first", "StoredModules", None)
    assert isinstance(modules, list)
    assert "typing" not in modules  # only annotations wanted it


def test_a_changed_module_is_loaded_from_its_source(command: Path) -> None:
    (command.parent / "word.py").write_text("WORD = 'other'\n")
    os.utime(command.parent / "word.py", ns=(1, 1))
    assert said(command)[:2] == ["other", "StoredModules"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None])
def test_without_a_good_store_the_sources_are_used(command: Path, damage: bytes | None) -> None:
    store = command.parent / "lib/say.modules"
    if damage is None:
        store.unlink()
    else:
        store.write_bytes(damage)
    assert said(command)[:2] == ["first", "SourceFileLoader"]


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """A folder with a package, a module that needs it, and one that fails after both when FAIL is set."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/__init__.py").write_text("from .leaf import NAME\n")
    (tmp_path / "inner/leaf.py").write_text("NAME = 'leaf'\n")
    (tmp_path / "outer.py").write_text("import inner.leaf\nfrom inner import NAME\n")
    (tmp_path / "last.py").write_text(
        "import os\nimport outer\nif 'FAIL' in os.environ:\n    raise KeyError(1)\n"
    )
    statements = "import last"
    module_store_writer.write(
        str(tmp_path / "store"), sys.executable, [str(tmp_path)], statements, {"go": statements}
    )
    return tmp_path


def preloaded(folder: Path, **environment: str) -> list[str]:
    """Which modules are there after a preload; then that an import finds the rest, or fails as it should."""
    script = (
        f"import sys\nsys.path.insert(0, {str(folder)!r})\n"
        f"{module_store_writer.start_lines(str(folder / 'store'))}"
        "sys.meta_path[0].preload('other')\nsys.meta_path[0].preload('go')\n"
        "found = {'inner', 'inner.leaf', 'outer', 'last'} & sys.modules.keys()\n"
        "try:\n    import last\nexcept KeyError:\n    found.add('error')\n"
        "import outer\nassert outer.inner.leaf.NAME == outer.NAME == 'leaf'\n"
        "print(*sorted(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-ISc", script], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return done.stdout.split()


def test_a_group_is_loaded_at_once(grouped: Path) -> None:
    assert preloaded(grouped) == ["inner", "inner.leaf", "last", "outer"]


def test_a_group_with_a_changed_module_is_left_alone(grouped: Path) -> None:
    os.utime(grouped / "last.py", ns=(1, 1))
    assert preloaded(grouped) == []


def test_a_group_with_a_module_that_fails(grouped: Path) -> None:
    assert preloaded(grouped, FAIL="1") == ["error", "inner", "inner.leaf", "outer"]


def test_a_cold_command_loads_nothing_slow(tmp_path: Path) -> None:
    store = str(tmp_path / "runc.modules")
    warm = f"import runc_bin; runc_bin.load_verbs{QUICK}"
    module_store_writer.write(store, sys.executable, [SERVICES], warm, {})
    script = (
        f"import sys\nsys.path.insert(0, {SERVICES!r})\n{module_store_writer.start_lines(store)}"
        f"import runc_bin\nfor name in {QUICK}:\n    runc_bin.load_verb(name)\nprint(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-ISc", script], capture_output=True, text=True, check=True)
    assert not SLOW & set(done.stdout.split())


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root for `runc-bin`, whose interpreter mount is taken away at the end."""
    yield tmp_path / "root"
    if (tmp_path / "root/@python").exists():
        interpreter.remove_mounts(str(tmp_path / "root/@python"))


@pytest.mark.root
@pytest.mark.skipif(sys.base_prefix not in ("/usr", "/usr/local"), reason="not the system's Python")
def test_launcher_starts_the_mounted_interpreter(tmp_path: Path, root: Path) -> None:
    bin_dir = tmp_path / "a b/bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "python").symlink_to(os.path.realpath(sys.executable))
    command = interpreter.write_launchers(str(bin_dir))[0]
    words = ["--log-format", "json", "--root", str(root)]
    # The first call of a command that enters containers makes the mount, whatever comes of the call itself.
    subprocess.run([command, *words, "exec", "nobody", "true"], capture_output=True, timeout=20)
    tracer = ["strace", "-f", "-e", "trace=execve", "-o", str(tmp_path / "trace")]
    for form in (words, [f"--root={root}"]):
        done = subprocess.run(
            [*tracer, command, *form, "exec", "nobody", "true"], capture_output=True, timeout=20
        )
        assert b"container does not exist" in done.stderr
        trace = (tmp_path / "trace").read_text().splitlines()
        started = [line.split('"')[1] for line in trace if "execve(" in line and line.endswith("= 0")]
        assert started[0] == command
        assert len(started) == 2
        assert started[1].startswith(f"{root}/@python/python-")
