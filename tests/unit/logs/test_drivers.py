"""Both file drivers through the one reader: the whole, tails, compression, cuts at any byte, the index."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from container_log import member_file, members, time_index
from container_log.member_file import MemberFile
from container_log.members import Member
from container_log.reader import LogReader, open_file, same_file, up_to
from container_log.run import PIECE

from tests.unit.logs.writing import RAW, Log, read_all

DRIVERS = ("json-file", "local")
SIZES = {"json-file": 20_000, "local": 4000}
NOTICE = re.compile(rb"\d+ bytes of the log are damaged here and were skipped\n")


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def lines(numbers: range) -> bytes:
    return b"".join(b"line %d\n" % number for number in numbers)


def reader(path: Path, driver: str, position: str = "", **options: Any) -> LogReader:
    return LogReader(path, dataclasses.replace(RAW, **options), position, driver)


def test_what_is_written_is_read(tmp_path: Path, driver: str) -> None:
    chance = random.Random(1)
    log = Log(tmp_path / "log", driver)
    said = {"stdout": b"", "stderr": b""}
    for _ in range(200):
        stream = chance.choice(("stdout", "stderr"))
        data = bytes(chance.choices(b'ab"\\\n\n\t<\x1b', k=chance.choice((1, 50, 3 * PIECE))))
        said[stream] += data
        log.write(stream, data)
    log.close()
    for stream, data in said.items():
        found = reader(tmp_path / "log", driver, stdout=stream == "stdout", stderr=stream == "stderr")
        assert read_all(found) == data


def test_the_files_of_local_are_read_by_zcat(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", "local")
    for start in range(0, 900, 30):
        log.write("stdout", lines(range(start, start + 30)))
    log.close()
    data, out = (tmp_path / "log").read_bytes(), b""
    while data:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        out += member.decompress(data)
        data = member.unused_data
    assert out == lines(range(900))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("tail", [0, 1, 7, 799, 800, 3999, 4000, 5000])
def test_tail_over_rotated_files(tmp_path: Path, driver: str, tail: int, compressed: bool) -> None:
    path = tmp_path / "log"
    log = Log(path, driver, max_size=SIZES[driver], max_file=50, compressed=compressed)
    for start in range(0, 4000, 16):
        log.write("stdout", lines(range(start, start + 16)))
    names = sorted(name.name for name in tmp_path.iterdir() if name.suffix != time_index.SUFFIX)
    assert len(names) > 3
    assert all(name == "log" or name.endswith(".gz") == compressed for name in names)
    found = reader(path, driver, tail=tail)
    assert read_all(found) == lines(range(max(0, 4000 - tail), 4000))
    log.write("stdout", lines(range(4000, 4100)))
    assert read_all(found) == lines(range(4000, 4100))


def test_positions_hold_over_rotation_and_compression(tmp_path: Path, driver: str) -> None:
    """A new reader at every step, as after a kill at every step, while files are compressed under it."""
    chance = random.Random(4)
    path = tmp_path / "log"
    log = Log(path, driver, max_size=SIZES[driver] // 2, max_file=60, compressed=True)
    written, got, position = 0, b"", ""
    for _ in range(120):
        count = chance.randint(0, 120)
        log.write("stdout", lines(range(written, written + count)))
        written += count
        found = reader(path, driver, position)
        for _ in range(chance.randint(0, 2)):
            got += found.read()[0]
        position = found.position
        found.close()
    got += read_all(reader(path, driver, position))
    assert got == lines(range(written))


def _cuts(size: int, chance: random.Random) -> list[int]:
    return sorted({0, 1, size - 1, size, *(chance.randrange(size) for _ in range(60))})


@pytest.mark.parametrize("kind", ["active", "compressed"])
def test_cut_at_any_byte_it_is_readable_and_says_so(tmp_path: Path, driver: str, kind: str) -> None:
    path = tmp_path / "log"
    compressed = kind == "compressed"
    log = Log(path, driver, max_size=SIZES[driver] if compressed else 0, max_file=9, compressed=compressed)
    written = 0
    while written < 300 or (compressed and not path.with_name("log.1.gz").exists()):
        log.write("stdout", lines(range(written, written + 10)))
        written += 10
    log.close()
    cut = path.with_name("log.1.gz") if compressed else path
    whole, all_lines = cut.read_bytes(), lines(range(written)).splitlines(keepends=True)
    behind = read_all(reader(path, driver)) if not compressed else b""
    for size in _cuts(len(whole), random.Random(7)):
        cut.write_bytes(whole[:size])
        got = read_all(reader(path, driver))
        told = NOTICE.findall(got)
        kept = NOTICE.sub(b"", got).splitlines(keepends=True)
        # What is there is a beginning, and the newer files; nothing is made up, doubled or moved.
        assert kept == [line for line in all_lines if line in set(kept)]
        assert len(kept) == len(set(kept))
        if size == len(whole):
            assert (kept, told) == (all_lines, [])
        elif kept and not compressed:
            assert kept == all_lines[: len(kept)]
        whole_entries = (
            driver == "json-file" and not compressed and whole[:size].endswith(b"\n")
        ) or not size
        if told:
            assert len(told) == 1
        else:
            assert whole_entries or _ends_with_a_member(cut)
        assert read_all(reader(path, driver, tail=5)) is not None
    assert behind in (b"", lines(range(written)))


def _ends_with_a_member(path: Path) -> bool:
    file = MemberFile(os.open(path, os.O_RDONLY))
    offset, more = 0, True
    while more:
        _, after = file.read(offset)
        more, offset = after > offset, after
    torn = file.torn(offset)
    file.close()
    return not torn


def test_a_damaged_middle_costs_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(path, "local")
    sizes = []
    for start in range(0, 100, 10):
        log.write("stdout", lines(range(start, start + 10)))
        sizes.append(path.stat().st_size)
    log.close()
    whole = path.read_bytes()
    chance = random.Random(2)
    for _ in range(200):
        at = chance.randrange(sizes[2], sizes[3])
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :])
        notice = b"%d bytes of the log are damaged here and were skipped\n" % (sizes[3] - sizes[2])
        assert read_all(reader(path, "local")) == lines(range(30)) + notice + lines(range(40, 100))


def test_since_reads_only_what_is_new(tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred megabytes the last lines: the index and one stretch are read. Counted, not timed."""
    now = 1_700_000_000_000_000_000
    monkeypatch.setattr("container_log.entries.time.time_ns", lambda: now)
    monkeypatch.setattr(time_index, "STRETCH", 1 << 16)
    path = tmp_path / "log"
    log = Log(path, driver)
    block = os.urandom(30_000).hex().encode()
    text = b"".join(block[at : at + 64] + b"\n" for at in range(0, len(block) - 64, 64))
    for _ in range(150):
        now += 1_000_000_000
        log.write("stdout", text)
    now += 1_000_000_000
    log.write("stdout", b"new\n")
    found = reader(path, driver, since=now)
    assert read_all(found) == b"new\n"
    assert path.stat().st_size > 5_000_000
    found.close()
    assert found.bytes_read < 1_200_000
    # Without the index, or with one that does not fit, the same is found.
    Path(f"{path}{time_index.SUFFIX}").write_bytes(b"x" * 100)
    assert read_all(reader(path, driver, since=now)) == b"new\n"


def test_a_file_that_grows_is_the_same_file(tmp_path: Path, driver: str) -> None:
    """Its mark comes with its first bytes: a replay that did not know it again left out all before it."""
    path = tmp_path / "log"
    path.touch()
    before = open_file(os.open(path, os.O_RDONLY), driver)
    log = Log(path, driver)
    log.write("stdout", lines(range(100)))
    for turn in (False, True):
        after = open_file(os.open(path, os.O_RDONLY), driver)
        assert same_file(after, before) if turn else same_file(before, after)
        after.close()
    before.close()


def test_since_opens_no_member_that_is_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that packs well fits a stretch of the index dozens of times."""
    now = 1_700_000_000_000_000_000
    monkeypatch.setattr("container_log.entries.time.time_ns", lambda: now)
    path = tmp_path / "log"
    log = Log(path, "local")
    for number in range(20):
        now += 1_000_000_000
        log.write("stdout", b"%d\n" % number)
    opened = []

    def unpack(data: bytes, at: int, member: Member) -> bytes | None:
        opened.append(member.start)
        return members.unpack(data, at, member)

    monkeypatch.setattr(member_file, "unpack", unpack)
    assert read_all(reader(path, "local", since=now - 1_000_000_000)) == b"18\n19\n"
    assert len(opened) <= 3  # the file's first is a mark


def test_the_index_knows_of_clocks_that_go_back(
    tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_700_000_000_000_000_000
    monkeypatch.setattr("container_log.entries.time.time_ns", lambda: now)
    monkeypatch.setattr(time_index, "STRETCH", 500)
    path = tmp_path / "log"
    log = Log(path, driver)
    wanted = b""
    for number, step in enumerate((1, 1, 50, -100, 1, 1, 200, -100, 1, 1)):
        now += step * 1_000_000_000
        text = lines(range(number * 100, number * 100 + 100))
        log.write("stdout", text)
        wanted += text if now >= 1_700_000_030_000_000_000 else b""
    assert wanted
    assert read_all(reader(path, driver, since=1_700_000_030_000_000_000)) == wanted


def test_a_log_that_was_cut_has_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_index, "STRETCH", 100)
    path = tmp_path / "log"
    log = Log(path, "json-file")
    log.write("stdout", lines(range(100)))
    os.truncate(path, 0)
    before = log.entries.latest + 1
    for start in range(100, 200, 10):
        log.write("stdout", lines(range(start, start + 10)))
    assert read_all(reader(path, "json-file", since=before)) == lines(range(100, 200))


def test_everything_up_to_a_place(tmp_path: Path, driver: str) -> None:
    """What a replay sends: the files before, and of the newest as much as was asked for."""
    path = tmp_path / "log"
    log = Log(path, driver, max_size=SIZES[driver] // 2, max_file=30, compressed=True)
    written = 0
    while log.file.size < 500 or written < 600:
        log.write("stdout", lines(range(written, written + 10)))
        written += 10
    size, fd = log.file.size, os.dup(log.file.fd)
    for start in range(written, written + 900, 10):
        log.write("stdout", lines(range(start, start + 10)))
    assert b"".join(up_to(path, driver, RAW, fd, size)) == lines(range(written))


def test_a_writer_that_died_is_followed_without_loss(tmp_path: Path) -> None:
    """Its last member is torn: the successor knows how much of the queue is in the file."""
    path = tmp_path / "log"
    log = Log(path, "local")
    log.write("stdout", lines(range(10)))
    offset = log.file.size
    queued = log.entries.of("stdout", lines(range(10, 20))) + log.entries.of("stderr", lines(range(20, 25)))
    first = log.file.append(queued[:-1])
    log.file.append(queued[first:])
    os.truncate(path, path.stat().st_size - 3)
    done, rotated = log.file.resume(offset)
    assert (done, rotated) == (first, False)
    log.append(queued[done:])
    assert read_all(reader(path, "local")) == lines(range(25))
