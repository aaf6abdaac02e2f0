"""What the runtime of a container means."""

from __future__ import annotations

from pathlib import Path

import errdefs
import pytest
from containerd_svc.runtimes import Runtime, options_for, resolve
from pb.containerd.runc.v1 import Options
from pb.google.protobuf import Any as AnyMessage

OURS = "io.containerd.runc.v2"
KIND = "containerd.runc.v1.Options"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("crun", "containerd-shim-other-v1", "shim-svc"):
        (tmp_path / name).touch(0o755)
    (tmp_path / "plain").touch(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_names_and_paths(folder: Path) -> None:
    crun, other = Runtime(binary=f"{folder}/crun"), Runtime(shim=f"{folder}/containerd-shim-other-v1")
    assert resolve(OURS, shims={}) == Runtime()
    assert resolve("crun", shims={}) == crun
    assert resolve(f"{folder}/crun", shims={}) == crun
    assert resolve(OURS, f"{folder}/crun", shims={}) == crun
    assert resolve(f"{folder}/shim-svc", shims={}) == Runtime()
    assert resolve("io.containerd.other.v1", shims={}) == other
    assert resolve("org.example.other.v1", shims={}) == other
    assert resolve(f"{folder}/containerd-shim-other-v1", shims={}) == other
    assert resolve(OURS, shims={OURS: other.shim}) == other
    assert resolve("crun", shims={OURS: other.shim}) == crun
    assert resolve(OURS, f"{folder}/crun", shims={OURS: other.shim}) == crun


@pytest.mark.parametrize(
    ("runtime", "path", "error", "text"),
    [
        ("io.containerd.nothing.v9", "", errdefs.InvalidArgument, '"containerd-shim-nothing-v9": file does'),
        ("nothing", "", errdefs.InvalidArgument, "invalid runtime name nothing"),
        ("../crun", "", errdefs.InvalidArgument, "invalid runtime name ../crun"),
        ("io.containerd.runc.v2", "crun", errdefs.InvalidArgument, "not absolute"),
        ("/no/such", "", errdefs.InvalidArgument, "no program"),
        ("{}/plain", "", errdefs.InvalidArgument, "no program"),
        ("{}", "", errdefs.InvalidArgument, "no program"),
        ("{}/containerd-shim-none-v1", "", errdefs.InvalidArgument, "no program"),
        ("gone.v1", "", errdefs.InvalidArgument, "/no/such is no program"),
    ],
)
def test_what_cannot_be(
    folder: Path, runtime: str, path: str, error: type[errdefs.BuoyError], text: str
) -> None:
    with pytest.raises(error, match=text):
        resolve(runtime.format(folder), path, shims={"gone.v1": "/no/such"})


def test_options() -> None:
    def made(options: Options | None, binary: str = "", shim: str = "") -> Options:
        given = None if options is None else AnyMessage(type_url=KIND, value=bytes(options))
        filled = options_for(given, Runtime(binary, shim), root="/states")
        assert filled is not None
        return Options.parse(filled.value)

    assert made(None) == Options(root="/states")
    wanted = Options(root="/other", binary_name="x", systemd_cgroup=True, io_uid=5, no_pivot_root=True)
    assert made(wanted) == wanted
    assert made(Options(io_gid=1), "/bin/crun") == Options(io_gid=1, binary_name="/bin/crun", root="/states")
    with pytest.raises(errdefs.InvalidArgument, match="options name x"):
        made(Options(binary_name="x"), "/bin/crun")
    with pytest.raises(errdefs.NotImplementedHere):
        made(Options(shim_cgroup="/x"))
    with pytest.raises(errdefs.NotImplementedHere):
        made(Options(task_api_address="/x"))
    other = AnyMessage(type_url="runtimeoptions.v1.Options", value=b"x")
    with pytest.raises(errdefs.InvalidArgument, match="task options of type"):
        options_for(other, Runtime(), root="/")
    # Another shim knows more options, and kinds of them.
    assert made(Options(shim_cgroup="/x"), shim="/s") == Options(shim_cgroup="/x", root="/states")
    assert made(None, shim="/bin/containerd-shim-runc-v2") == Options(root="/states")
    assert options_for(None, Runtime(shim="/bin/containerd-shim-kata-v2"), root="/states") is None
    assert options_for(other, Runtime(shim="/bin/containerd-shim-runc-v2"), root="/states") == other
