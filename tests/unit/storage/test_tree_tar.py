"""Trees that change while they are written."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from storage.tree_tar import Changed, TreeTar


class Shrinking(io.BytesIO):
    """Cuts a file off as soon as anything of it was written."""

    def __init__(self, victim: Path) -> None:
        super().__init__()
        self._victim = victim

    def write(self, data: object) -> int:
        os.truncate(self._victim, 3)
        return super().write(data)  # type: ignore[arg-type]


def test_a_file_that_shrinks_is_padded(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * 2000)
    out = Shrinking(file)
    tar = TreeTar(str(tmp_path), out, pad=True)
    tar.entry("f", file.lstat())
    tar.end()
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as found:
        content = found.extractfile("f")
        assert content is not None
        assert content.read() == b"xxx" + bytes(1997)


def test_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * 2000)
    with pytest.raises(OSError, match="f shrank while it was read"):
        TreeTar(str(tmp_path), Shrinking(file)).entry("f", file.lstat())


@pytest.mark.parametrize("other", ["link", "fifo"])
def test_a_file_that_becomes_something_else(tmp_path: Path, other: str) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    facts = file.lstat()
    file.unlink()
    if other == "link":
        file.symlink_to("/etc/passwd")
    else:
        os.mkfifo(file)
    out = io.BytesIO()
    with pytest.raises(Changed):
        TreeTar(str(tmp_path), out).entry("f", facts)
    assert out.getvalue() == b""
