"""The json-file reader: ends and beginnings, times, torn records, rotation, and going on at a position."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import struct
from pathlib import Path

import pytest
from container_log.json_decoding import decode
from container_log.json_file import CHUNK
from container_log.reader import LogOptions, LogReader
from container_log.run import Run
from container_log.times import nanoseconds

RAW = LogOptions(multiplexed=False)


def time_of(number: int) -> str:
    return f"2024-05-01T10:{number // 60 % 60:02}:{number % 60:02}.{number:09}Z"


def record(number: int, stream: str = "stdout", text: str | None = None, **more: object) -> bytes:
    log = f"line {number}\n" if text is None else text
    document = {"log": log, "stream": stream, **more, "time": time_of(number)}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def write(path: Path, numbers: range) -> None:
    with path.open("ab") as file:
        for number in numbers:
            file.write(record(number))


def lines(numbers: range) -> bytes:
    return b"".join(b"line %d\n" % number for number in numbers)


def read_all(log: LogReader) -> bytes:
    out = []
    while True:
        data, end = log.read()
        out.append(data)
        if end or log.done:
            return b"".join(out)


def rotate(path: Path, keep: int) -> None:
    """As the writer does: path.2 → path.3, path.1 → path.2, path → path.1, a new path."""
    path.with_name(f"{path.name}.{keep}").unlink(missing_ok=True)
    for number in range(keep - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.rename(path.with_name(f"{path.name}.{number + 1}"))
    path.rename(path.with_name(f"{path.name}.1"))
    path.touch()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "abc-json.log"


def test_whole_log_over_its_rotated_files(path: Path) -> None:
    for part in range(4):
        write(path, range(part * 2000, part * 2000 + 2000))
        if part < 3:
            rotate(path, 5)
    assert read_all(LogReader(path, RAW)) == lines(range(8000))


@pytest.mark.parametrize("tail", [0, 1, 2, 1999, 2000, 2001, 5000, 8000, 9000])
def test_tail_over_rotated_files(path: Path, tail: int) -> None:
    for part in range(4):
        write(path, range(part * 2000, part * 2000 + 2000))
        if part < 3:
            rotate(path, 5)
    log = LogReader(path, dataclasses.replace(RAW, tail=tail))
    assert read_all(log) == lines(range(max(0, 8000 - tail), 8000))
    write(path, range(8000, 8010))
    assert read_all(log) == lines(range(8000, 8010))


def test_tail_of_an_empty_or_missing_log(path: Path) -> None:
    missing = LogReader(path, dataclasses.replace(RAW, tail=3))
    assert read_all(missing) == b""
    write(path, range(2))
    assert read_all(missing) == lines(range(2))
    path.unlink()
    path.touch()
    empty = LogReader(path, dataclasses.replace(RAW, tail=3))
    assert read_all(empty) == b""
    write(path, range(2))
    assert read_all(empty) == lines(range(2))


def test_following_over_rotations(path: Path) -> None:
    """The writer rotates several times between two looks; no record is lost or seen twice."""
    chance = random.Random(3)
    path.touch()
    log = LogReader(path, RAW)
    got, written = b"", 0
    for _ in range(60):
        for _ in range(chance.randint(0, 3)):
            count = chance.randint(1, 400)
            write(path, range(written, written + count))
            written += count
            rotate(path, 9)
        if chance.random() < 0.5:
            got += read_all(log)
        else:
            got += log.read()[0]
    got += read_all(log)
    assert got == lines(range(written))


def test_position_goes_on_in_another_process(path: Path) -> None:
    """A new reader at every step, as after a kill at every step."""
    chance = random.Random(5)
    path.touch()
    options = dataclasses.replace(RAW, tail=7)
    log = LogReader(path, options)
    position, got, written = log.position, b"", 0
    log.close()
    for _ in range(150):
        if chance.random() < 0.6:
            count = chance.randint(1, 900)
            write(path, range(written, written + count))
            written += count
        if chance.random() < 0.2:
            rotate(path, 9)
        log = LogReader(path, options, position)
        data, _ = log.read()
        got += data
        position = log.position
        log.close()
    got += read_all(LogReader(path, options, position))
    assert got == lines(range(written))


def test_position_in_a_file_that_was_rotated_away(path: Path) -> None:
    write(path, range(10))
    log = LogReader(path, RAW)
    read_all(log)
    position = log.position
    log.close()
    for start in (10, 20, 30):
        rotate(path, 2)
        write(path, range(start, start + 10))
    # What is left of it begins with the oldest file.
    assert read_all(LogReader(path, RAW, position)) == lines(range(10, 40))[-len(lines(range(10, 40))) :]


def test_emptied_log_begins_anew(path: Path) -> None:
    write(path, range(100))
    log = LogReader(path, RAW)
    read_all(log)
    path.write_bytes(b"")
    write(path, range(200, 203))
    assert read_all(log) == lines(range(200, 203))


def test_torn_records(path: Path) -> None:
    whole = record(1)
    path.write_bytes(record(0) + whole[:20])
    log = LogReader(path, RAW)
    assert read_all(log) == b"line 0\n"
    with path.open("ab") as file:
        file.write(
            whole[20:] + b'{"log":"lost" gar\n\x00\x00\n{"log":"torn' + record(2) + b"[1]\n" + record(3)
        )
    torn = b"33 bytes of the log are damaged here and were skipped\n"
    assert read_all(log) == b"line 1\n" + torn + b"line 2\n" + torn.replace(b"33", b"4") + b"line 3\n"


def test_torn_record_at_the_end_of_a_rotated_file(path: Path) -> None:
    path.write_bytes(record(0) + b'{"log":"never ended')
    log = LogReader(path, RAW)
    assert read_all(log) == b"line 0\n"
    rotate(path, 3)
    write(path, range(1, 3))
    torn = b"19 bytes of the log are damaged here and were skipped\n"
    assert read_all(log) == torn + b"line 1\nline 2\n"


def test_records_longer_than_a_chunk(path: Path) -> None:
    text = "x" * (CHUNK * 3) + "\n"
    path.write_bytes(record(0) + record(1, text=text) + record(2))
    log = LogReader(path, dataclasses.replace(RAW, tail=2))
    assert read_all(log) == text.encode() + b"line 2\n"


def test_streams_and_frames(path: Path) -> None:
    path.write_bytes(record(0) + record(1, "stderr") + record(2, text="part"))
    frame = {1: b"line 0\n", 2: b"line 1\n"}
    expected = b"".join(struct.pack(">BxxxI", kind, len(text)) + text for kind, text in frame.items())
    expected += struct.pack(">BxxxI", 1, 4) + b"part"
    assert read_all(LogReader(path, LogOptions())) == expected
    assert read_all(LogReader(path, dataclasses.replace(RAW, stdout=False))) == b"line 1\n"
    assert read_all(LogReader(path, dataclasses.replace(RAW, stderr=False))) == b"line 0\npart"


def test_since_until_timestamps_details(path: Path) -> None:
    write(path, range(100))
    wanted = dataclasses.replace(
        RAW, since=nanoseconds(time_of(10)), until=nanoseconds(time_of(12)), timestamps=True
    )
    log = LogReader(path, wanted)
    assert read_all(log) == b"".join(f"{time_of(n)} line {n}\n".encode() for n in range(10, 13))
    assert log.done
    path.write_bytes(record(1, attrs={"b": "2 3", "a": "1"}) + record(2).replace(b".000000002Z", b".5+02:00"))
    both = dataclasses.replace(RAW, details=True, timestamps=True)
    assert read_all(LogReader(path, both)) == (
        f"{time_of(1)} a=1,b=2+3 line 1\n".encode() + b"2024-05-01T10:00:02.500000000+02:00  line 2\n"
    )


def test_text_of_every_kind(path: Path) -> None:
    texts = [
        'q"uote\\back\n',
        "tab\tüñí€\U0001f600\n",
        "\u0000\u001b[0m\n",
        "<>&\u2028\n",
        "",
        "\n",
        "\ufffd\n",
    ]
    path.write_bytes(b"".join(record(n, text=text) for n, text in enumerate(texts)))
    assert read_all(LogReader(path, RAW)) == "".join(texts).encode()


def test_runs_agree_with_json() -> None:
    """Texts of every kind in runs of every length, other streams and torn lines between them."""
    chance = random.Random(11)
    texts = [
        "plain\n",
        "\n",
        'q"\\\n',
        "\\n\n",
        "no end",
        "\u00e9\u2028\n",
        '","stream":"\n',
        '{"log":"x\n',
        "t\t\r\n",
    ]
    for _ in range(300):
        data, wanted = b"", []
        for number in range(chance.randint(1, 9)):
            stream = chance.choice(("stdout", "stderr"))
            attrs = {"attrs": {"k": "v"}} if chance.random() < 0.2 else {}
            for _ in range(chance.choice((1, 2, 3, 60))):
                text = chance.choice(texts)
                data += record(number, stream, text, **attrs)
                wanted.append((text, stream, time_of(number), attrs.get("attrs")))
            if chance.random() < 0.3:
                data += chance.choice((b"torn\n", b"\0\0\0\n", b"[1]\n", b'{"log":"torn\n'))
        found = []
        for entry in decode(data):
            if isinstance(entry, Run):
                pieces = re.findall(r"[^\n]*\n|[^\n]+", entry.text.decode())
                found += [(piece, entry.stream, entry.time, entry.attrs) for piece in pieces]
        assert found == wanted


def test_nanoseconds() -> None:
    assert nanoseconds("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert nanoseconds("1970-01-01T02:00:00+02:00") == 0
    assert nanoseconds("2024-02-29T00:00:00.123456789Z") == 1_709_164_800_123_456_789
    with pytest.raises(ValueError, match="not an RFC 3339 time"):
        nanoseconds("yesterday")
