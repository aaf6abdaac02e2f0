"""The daemon's configuration: how many layers move at a time."""

from __future__ import annotations

import json
from pathlib import Path

import errdefs
import pytest
from dockerd_api import config


@pytest.mark.parametrize(("what", "default"), [("downloads", 3), ("uploads", 5)])
def test_layers_at_a_time(tmp_path: Path, what: str, default: int) -> None:
    file = tmp_path / "daemon.json"
    file.write_text("{}")
    key, of_file = f"max-concurrent-{what}", ["--config-file", str(file)]
    assert config.parse(of_file)[key] == default
    assert config.parse([*of_file, f"--{key}", "1"])[key] == 1
    file.write_text(json.dumps({key: 7}))
    assert config.parse(of_file)[key] == 7
    file.write_text(json.dumps({key: -1}))
    with pytest.raises(errdefs.InvalidArgument, match=f"invalid max concurrent {what}: -1"):
        config.parse(of_file)
