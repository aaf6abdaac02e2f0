"""What the runtime of a container means."""

from __future__ import annotations

from pathlib import Path

import errdefs
import pytest
from containerd_svc.runtimes import binary_of, options_for
from pb.containerd.runc.v1 import Options
from pb.google.protobuf import Any as AnyMessage

KIND = "containerd.runc.v1.Options"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("crun", "containerd-shim-other-v1", "shim-svc"):
        (tmp_path / name).touch(0o755)
    (tmp_path / "plain").touch(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_names_and_paths(folder: Path) -> None:
    assert binary_of("io.containerd.runc.v2") == ""
    assert binary_of("crun") == f"{folder}/crun"
    assert binary_of(f"{folder}/crun") == f"{folder}/crun"
    assert binary_of("io.containerd.runc.v2", f"{folder}/crun") == f"{folder}/crun"
    assert binary_of(f"{folder}/shim-svc") == ""


@pytest.mark.parametrize(
    ("runtime", "path", "error", "text"),
    [
        ("io.containerd.nothing.v9", "", errdefs.InvalidArgument, '"containerd-shim-nothing-v9": file does'),
        ("io.containerd.other.v1", "", errdefs.NotImplementedHere, "containerd-shim-other-v1 is not ours"),
        ("nothing", "", errdefs.InvalidArgument, "invalid runtime name nothing"),
        ("../crun", "", errdefs.InvalidArgument, "invalid runtime name ../crun"),
        ("io.containerd.runc.v2", "crun", errdefs.InvalidArgument, "not absolute"),
        ("/no/such", "", errdefs.InvalidArgument, "no program"),
        ("{}/plain", "", errdefs.InvalidArgument, "no program"),
        ("{}", "", errdefs.InvalidArgument, "no program"),
        ("{}/containerd-shim-other-v1", "", errdefs.NotImplementedHere, "is not ours"),
    ],
)
def test_what_cannot_be(
    folder: Path, runtime: str, path: str, error: type[errdefs.BuoyError], text: str
) -> None:
    with pytest.raises(error, match=text):
        binary_of(runtime.format(folder), path)


def test_options() -> None:
    def made(options: Options | None, binary: str = "") -> Options:
        given = None if options is None else AnyMessage(type_url=KIND, value=bytes(options))
        return Options.parse(options_for(given, binary=binary, root="/states").value)

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
    with pytest.raises(errdefs.InvalidArgument, match="task options of type"):
        options_for(AnyMessage(type_url="runtimeoptions.v1.Options", value=b"x"), binary="", root="/")
