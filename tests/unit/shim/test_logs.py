"""The json-file log: escapes, pieces, rotation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from container_log.entries import Entries
from container_log.json_encoding import JsonEncoder, escape
from container_log.run import PIECE, STREAMS
from container_log.times import timestamp
from shim_svc.log_file import LogFile


def entries(path: Path) -> list[str]:
    return [json.loads(line)["log"] for line in path.read_bytes().splitlines()]


class Log:
    """Entries that go into a file at once, as the shim's writer does it behind its queue."""

    def __init__(self, path: str, *, max_size: int = 0, max_file: int = 1) -> None:
        self.entries = Entries(JsonEncoder())
        self.file = LogFile(path, max_size=max_size, max_file=max_file)

    def write(self, stream: str, data: bytes) -> None:
        self._append(self.entries.of(stream, data))

    def _append(self, data: bytes) -> None:
        while data:
            if self.file.full:
                self.file.rotate()
            data = data[self.file.append(data) :]

    def close(self) -> None:
        for stream in STREAMS:
            self._append(self.entries.last(stream))
        self.file.close()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", b"plain"),
        (b'"\\\r\t', rb"\"\\\r\u0009"),
        (b"<&>\x00\x1b\x7f", b"\\u003c\\u0026\\u003e\\u0000\\u001b\x7f"),
        ("é€😀".encode(), "é€😀".encode()),
        (b"\xff\xc3", rb"\ufffd\ufffd"),
        (b"\xed\xa0\x80", rb"\ufffd\ufffd\ufffd"),
        ("\u2028\u2029".encode(), rb"\u2028\u2029"),
    ],
)
def test_escapes_are_those_of_gos_encoder(data: bytes, text: bytes) -> None:
    assert escape(data) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, b"1970-01-01T00:00:00Z"),
        (1_500_000_000, b"1970-01-01T00:00:01.5Z"),
        (1, b"1970-01-01T00:00:00.000000001Z"),
    ],
)
def test_times_have_no_trailing_zeros(ns: int, text: bytes) -> None:
    assert timestamp(ns) == text


@pytest.mark.parametrize("step", [1, 7, 1000, PIECE, 100_000])
def test_however_it_arrives_the_entries_are_the_same(tmp_path: Path, step: int) -> None:
    if step == 1:
        lines = [b"a", b"", b"bc"]
    else:
        lines = [b"short", b"x" * (PIECE - 1), b"y" * PIECE, b"z" * (PIECE + 1), b"w" * (3 * PIECE + 5), b""]
    data = b"\n".join(lines) + b"\nlast"
    log = Log(str(tmp_path / "log"))
    for start in range(0, len(data), step):
        log.write("stdout", data[start : start + step])
    log.close()
    found = entries(tmp_path / "log")
    wanted: list[str] = []
    for line in lines:
        text = line.decode()
        while len(text) >= PIECE:
            wanted.append(text[:PIECE])
            text = text[PIECE:]
        wanted.append(text + "\n")
    assert found == [*wanted, "last"]


def test_pieces_of_a_line_carry_the_time_of_the_first(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    log.write("stdout", b"x" * PIECE)
    log.write("stdout", b"y" * PIECE + b"z\nnext\n")
    log.close()
    times = [json.loads(line)["time"] for line in (tmp_path / "log").read_bytes().splitlines()]
    assert times[0] == times[1] == times[2] != times[3]


def test_streams_do_not_mix(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    log.write("stdout", b"one ")
    log.write("stderr", b"other\n")
    log.write("stdout", b"line\n")
    log.close()
    assert entries(tmp_path / "log") == ["other\n", "one line\n"]


@pytest.mark.parametrize("batch", [1, 50, 1000])
def test_each_file_ends_with_the_line_that_reaches_the_limit(tmp_path: Path, batch: int) -> None:
    path = tmp_path / "log"
    log = Log(str(path), max_size=1000, max_file=3)
    lines = [b"%d\n" % number for number in range(1000)]
    for start in range(0, len(lines), batch):
        log.write("stdout", b"".join(lines[start : start + batch]))
    log.close()
    files = [tmp_path / "log.2", tmp_path / "log.1", path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    found = [int(entry) for file in files for entry in entries(file)]
    assert found == list(range(found[0], 1000))
    for file in files[:2]:
        size = file.stat().st_size
        last = file.read_bytes().splitlines(keepends=True)[-1]
        assert size - len(last) < 1000 <= size


def test_one_file_is_replaced(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), max_size=500)
    for number in range(100):
        log.write("stdout", b"%d\n" % number)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert entries(tmp_path / "log")[-1] == "99\n"


def test_a_log_that_exists_is_continued(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = Log(str(tmp_path / "log"))
        log.write("stdout", text)
        log.close()
    assert entries(tmp_path / "log") == ["one\n", "two\n"]


def test_a_rotation_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    """A successor of a writer that died in the middle moves each file up once."""
    path = tmp_path / "log"
    log = LogFile(str(path), max_size=10, max_file=5)
    for number in range(3):
        log.append(b"file %d ....\n" % number)
        log.rotate()
    log.append(b"file 3 ....\n")
    (tmp_path / "log.3").rename(tmp_path / "log.4")
    (tmp_path / "log.2").rename(tmp_path / "log.3")
    assert log.resume(log.size) == (0, False)
    log.rotate()
    assert [(tmp_path / f"log.{number}").read_bytes()[:6] for number in (4, 3, 2, 1)] == [
        b"file 0",
        b"file 1",
        b"file 2",
        b"file 3",
    ]
    log.append(b"file 4 ....\n")
    size = log.size
    path.rename(tmp_path / "log.0")  # as if it had been moved, and the next one not been made yet
    assert log.resume(size) == (0, True)
    assert (path.read_bytes(), log.size) == (b"", 0)
    log.close()


def test_what_a_dead_writer_had_written_is_known_by_the_size(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "log"))
    log.append(b"told")
    with (tmp_path / "log").open("ab") as other:
        other.write(b"untold")
    assert log.resume(4) == (6, False)
    (tmp_path / "log").write_bytes(b"")  # cut by somebody
    assert log.resume(4) == (0, False)
    log.close()


def test_missing_lines_are_told_in_an_entry() -> None:
    entry = json.loads(Entries(JsonEncoder()).missing(17))
    assert entry["stream"] == "stderr"
    assert entry["log"].startswith("17 lines ")
