"""The daemon's configuration file."""

from __future__ import annotations

from pathlib import Path

import errdefs
import pytest
from containerd_svc import config
from containerd_svc.plugins import TASK


def test_a_file_leaves_plugins_out(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.images", "io.containerd.grpc.v1.cri"]\n'
    )
    assert config.load(path).disabled == {"io.containerd.grpc.v1.images", "io.containerd.grpc.v1.cri"}
    path.write_text(f"version = 2\n[plugins.'{TASK}'.shims]\n'org.example.x.v1' = '/bin/x'\n")
    assert config.load(path).shims == {"org.example.x.v1": "/bin/x"}
    path.write_text("version = 2\n")
    assert config.load(path) == config.Config()
    with pytest.raises(errdefs.NotFound, match=r"none\.toml: no such file"):
        config.load(tmp_path / "none.toml")
    path.write_bytes(b"\xff")
    with pytest.raises(errdefs.InvalidArgument, match=r"config.toml: not UTF-8"):
        config.load(path)
    with pytest.raises(errdefs.InvalidArgument, match="Is a directory"):
        config.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 1", "version must be 2, not 1"),
        ("version = true", "version must be 2, not True"),
        ("", "version must be 2, not None"),
        ("version = ", "not TOML"),
        ('version = 2\noom_score = 5\nroot = "/x"', "unknown key 'oom_score'"),
        (
            "version = 2\n[plugins.x]\na = 1",
            "unknown key 'plugins.x'; known are io.containerd.runtime.v2.task",
        ),
        ("version = 2\nplugins = 1", "plugins must be a table, not 1"),
        (f"version = 2\n[plugins.'{TASK}']\na = 1", f"unknown key 'plugins.{TASK}.a'; known are shims"),
        (f"version = 2\n[plugins.'{TASK}']\nshims = 1", f"plugins.{TASK}.shims must be a table"),
        (f"version = 2\n[plugins.'{TASK}'.shims]\na = 'b'", "'a' must have an absolute path, not 'b'"),
        (f"version = 2\n[plugins.'{TASK}'.shims]\na = 1", "'a' must have an absolute path, not 1"),
        ('version = 2\ndisabled_plugins = "x"', "disabled_plugins must be a list of strings, not 'x'"),
        ("version = 2\ndisabled_plugins = [1]", "must be a list of strings"),
        ('version = 2\ndisabled_plugins = ["cri"]', "there is no plugin 'cri'"),
        (
            'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.tasks"]',
            "v1.tasks cannot be left out; those that can are .*io.containerd.grpc.v1.images",
        ),
    ],
)
def test_what_is_not_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match=message):
        config.parse(text)
