"""The json-file log: escapes, pieces, rotation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shim_svc.logs import PIECE, JsonFileLog, escape, timestamp
from shim_svc.replay import LogCursor


def entries(path: Path) -> list[str]:
    return [json.loads(line)["log"] for line in path.read_bytes().splitlines()]


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
    log = JsonFileLog(str(tmp_path / "log"))
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
    log = JsonFileLog(str(tmp_path / "log"))
    log.write("stdout", b"x" * PIECE)
    log.write("stdout", b"y" * PIECE + b"z\nnext\n")
    log.close()
    times = [json.loads(line)["time"] for line in (tmp_path / "log").read_bytes().splitlines()]
    assert times[0] == times[1] == times[2] != times[3]


def test_streams_do_not_mix(tmp_path: Path) -> None:
    log = JsonFileLog(str(tmp_path / "log"))
    log.write("stdout", b"one ")
    log.write("stderr", b"other\n")
    log.write("stdout", b"line\n")
    log.close()
    assert entries(tmp_path / "log") == ["other\n", "one line\n"]


@pytest.mark.parametrize("batch", [1, 50, 1000])
def test_each_file_ends_with_the_line_that_reaches_the_limit(tmp_path: Path, batch: int) -> None:
    path = tmp_path / "log"
    log = JsonFileLog(str(path), max_size=1000, max_file=3)
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
    log = JsonFileLog(str(tmp_path / "log"), max_size=500)
    for number in range(100):
        log.write("stdout", b"%d\n" % number)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert entries(tmp_path / "log")[-1] == "99\n"


def test_a_cursor_follows_rotations(tmp_path: Path) -> None:
    log = JsonFileLog(str(tmp_path / "log"), max_size=2000, max_file=4)
    cursor = LogCursor(log)
    got = []
    for number in range(500):
        log.write("stdout", b"%d\n" % number)
        if number % 10 == 0:
            while (found := cursor.read()) is not None:
                got += [int(text) for _, text in found]
    while (found := cursor.read()) is not None:
        got += [int(text) for _, text in found]
    log.close()
    cursor.close()
    assert got == list(range(500))


def test_a_log_that_exists_is_continued(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = JsonFileLog(str(tmp_path / "log"))
        log.write("stdout", text)
        log.close()
    assert entries(tmp_path / "log") == ["one\n", "two\n"]
