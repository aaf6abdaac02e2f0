"""Detach keys, backlogs, exit records, states, the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import errdefs
import pytest
from shim_svc import exit_record
from shim_svc.__main__ import UsageError, parse
from shim_svc.bundle import read_spec, task_socket
from shim_svc.detach import DetachKeys, parse_keys
from shim_svc.exit_record import ExitRecord
from shim_svc.process import TRANSITIONS, Process, Status, check_identifier
from shim_svc.spill import SEGMENT, Spill
from shim_svc.stdio import Stdio, Target, parse_target


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("a,b", b"ab"), ("ctrl-@", b"\0"), ("ctrl-_", b"\x1f"), ("", b"")],
)
def test_keys_are_read(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-!", "ctrl-", "ab", "ctrl-pp", ",", "é"])
def test_bad_keys_are_refused(text: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        parse_keys(text)


@pytest.mark.parametrize(
    ("keys", "reads", "passed", "detached"),
    [
        (b"pq", [b"abpqc"], b"ab", True),
        (b"pq", [b"abp", b"qc"], b"ab", True),
        (b"pq", [b"p", b"p", b"q"], b"p", True),
        (b"pq", [b"p", b"x", b"q"], b"pxq", False),
        (b"aab", [b"aaab"], b"a", True),
        (b"aab", [b"a", b"a", b"c"], b"aac", False),
        (b"", [b"pq"], b"pq", False),
    ],
)
def test_the_sequence_is_found_across_reads(
    keys: bytes, reads: list[bytes], passed: bytes, detached: bool
) -> None:
    filter_ = DetachKeys(keys)
    out, found = b"", False
    for data in reads:
        part, found = filter_.feed(data)
        out += part
        if found:
            break
    assert (out, found) == (passed, detached)


def test_what_is_held_at_the_end_is_not_lost() -> None:
    filter_ = DetachKeys(b"pq")
    assert filter_.feed(b"xp") == (b"x", False)
    assert filter_.rest() == b"p"


@pytest.mark.parametrize("on_disk", [True, False])
async def test_a_backlog_gives_back_what_was_put_in(tmp_path: Path, on_disk: bool) -> None:
    spill = Spill(str(tmp_path) if on_disk else None)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    blocks = [bytes([number]) * (1 << 20) for number in range(20)]
    for block in blocks:
        assert spill.append(block)
    assert spill.size == 20 << 20 > 2 * SEGMENT
    got = bytearray()
    while spill.size:
        with pytest.raises(BlockingIOError) if spill.size > 1 << 20 else _nothing():
            spill.send(ours)
        while len(got) < (20 << 20) - spill.size:
            got += theirs.recv(1 << 20)
        await asyncio.sleep(0)
    assert bytes(got) == b"".join(blocks)
    assert list(tmp_path.iterdir()) == []
    spill.close()
    ours.close()
    theirs.close()


def _nothing() -> contextlib.AbstractContextManager[None]:

    return contextlib.suppress(BlockingIOError)


def test_a_backlog_has_a_limit() -> None:
    spill = Spill(None)
    block = bytes(16 << 20)
    assert [spill.append(block) for _ in range(5)] == [True] * 4 + [False]
    spill.close()


RECORD = ExitRecord("c", 7, 3, "2026-01-02T03:04:05.000000006Z", "", False, 2)


def test_exit_records(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert exit_record.read(folder) is None
    exit_record.write(folder, exit_record.encode(RECORD))
    assert exit_record.read(folder) == RECORD
    assert json.loads((tmp_path / "exit.json").read_text())["exit_status"] == 3
    # a power cut that undid the rename of the next one
    (tmp_path / "exit.json").rename(tmp_path / "exit.json.new")
    assert exit_record.read(folder) == RECORD
    # and one that cut the next one off
    exit_record.write(folder, exit_record.encode(RECORD))
    (tmp_path / "exit.json.new").write_text('{"container_id": "c", "pi')
    assert exit_record.read(folder) == RECORD


def test_times_of_records_go_both_ways() -> None:
    ns = 1_234_567_890_123_456_789
    assert exit_record.timestamp(ns) == "2009-02-13T23:31:30.123456789Z"
    assert exit_record.parse_timestamp(exit_record.timestamp(ns)) == ns


def test_states_only_move_as_the_table_says() -> None:
    for status, allowed in TRANSITIONS.items():
        for other in Status:
            process = Process("", Stdio.parse("", "", "", False), ("", "", ""))
            process.status = status
            if other in allowed:
                process.become(other)
                assert process.status is other
            else:
                with pytest.raises(errdefs.Internal):
                    process.become(other)


@pytest.mark.parametrize("text", ["", "..", "a/b", "-a", "a b", "x" * 129, "a\n"])
def test_identifiers(text: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        check_identifier("id", text)


def test_targets() -> None:
    assert parse_target("") == Target("null")
    assert parse_target("/a") == parse_target("fifo:///a") == Target("fifo", "/a")
    assert parse_target("attach:///a.a") == Target("attach", "/a.a")
    logger = Target("binary", "/a b", ("k", "v&", "x", ""))
    assert parse_target("binary:///a%20b?k=v%26&k=2&x") == logger
    for field in ("file:///x", "binary:///x"):
        with pytest.raises(errdefs.InvalidArgument):
            parse_target(field, stdin=True)


def test_a_logger_takes_both_streams_or_is_refused() -> None:
    uri = "binary:///a?b=c"
    assert Stdio.parse("", uri, "", False) == Stdio.parse("", uri, uri, False)
    assert Stdio.parse("", uri, "", False).logger == ("/a", "b", "c")
    assert Stdio.parse("", uri, "", True).stderr == Target("null")
    assert Stdio.parse("", "/a", "/b", False).logger == ()
    for stdout, stderr in ((uri, "/a"), ("/a", uri), ("", uri), (uri, "binary:///b")):
        with pytest.raises(errdefs.InvalidArgument):
            Stdio.parse("", stdout, stderr, False)


def test_socket_paths(tmp_path: Path) -> None:
    one = task_socket("/run/s", "moby", "id", "/bundle")
    assert one == task_socket("/run/s", "moby", "id", "/bundle")
    assert one != task_socket("/run/s", "moby", "id", "/other")
    with pytest.raises(errdefs.InvalidArgument):
        task_socket("/" + "x" * 100, "moby", "id", "/bundle")


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("nonsense", "config.json"),
        ("[]", "not an object"),
        ('{"annotations": {"dev.buoy.log.driver": "syslog"}}', "unknown driver"),
        ('{"annotations": {"dev.buoy.log.driver": "json-file"}}', "absolute path"),
        ('{"annotations": {"dev.buoy.log.max-size": "10m"}}', "not a number"),
    ],
)
def test_a_bad_spec(tmp_path: Path, document: str, text: str) -> None:
    (tmp_path / "config.json").write_text(document)
    with pytest.raises(errdefs.InvalidArgument, match=text):
        read_spec(str(tmp_path))


def test_the_command_line_is_gos() -> None:
    words = ["-namespace", "n", "--id=i", "-debug", "-address", "/a", "start"]
    assert parse(words) == ("start", {"namespace": "n", "id": "i", "debug": "true", "address": "/a"})
    for bad in (["-x"], ["start", "delete"], ["-id"]):
        with pytest.raises(UsageError):
            parse(bad)
