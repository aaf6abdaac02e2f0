"""Checkpoint and restore up to CRIU: options, its messages, what is refused before anything is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from errdefs import BuoyError, DataLoss, FailedPrecondition, InvalidArgument, NotFound, NotImplementedHere
from runc_bin import cli
from runc_bin.commands import checkpoint, restore
from runc_bin.libcontainer.checkpoint import criu, messages
from runc_bin.libcontainer.checkpoint import options as asked
from runc_bin.libcontainer.checkpoint.messages import Response


def parse(*words: str) -> cli.Context:
    flags, verb, rest = cli.split(words)
    return cli.parse_verb(verb, rest, flags)


def test_containerds_checkpoint() -> None:
    options = checkpoint.read_options(
        parse(
            *(
                "checkpoint",
                "--image-path",
                "/i",
                "--work-path",
                "/w",
                "--leave-running",
                "--tcp-established",
            ),
            *("--ext-unix-sk", "--shell-job", "--file-locks", "--empty-ns", "network", "c1"),
        )
    )
    assert (options.image_path, options.work_path) == ("/i", "/w")
    assert options.stays
    fields = asked.shared(options, {})
    assert fields["tcp_established"]
    assert fields["ext_unix_sk"]
    assert fields["shell_job"]
    assert fields["file_locks"]
    assert fields["empty_ns"] == 0x40000000
    assert fields["config_file"] == "/etc/criu/runc.conf"


def test_the_rest_of_runcs_flags() -> None:
    options = checkpoint.read_options(
        parse(
            *("checkpoint", "--pre-dump", "--parent-path", "../p", "--lazy-pages", "--status-fd", "7"),
            *("--page-server", "[::1]:99", "--manage-cgroups-mode", "ignore", "--auto-dedup", "c1"),
        )
    )
    assert options.image_path == os.path.abspath("checkpoint")
    assert options.page_server == ("::1", 99)
    assert (options.status_fd, options.parent_path) == (7, "../p")
    assert options.stays
    # zero, and yet it must be said
    assert asked.shared(options, {})["manage_cgroups_mode"] == 0
    assert checkpoint.read_options(parse("checkpoint", "c1")).status_fd == -1


def test_a_restores_labels() -> None:
    words = ("--lsm-profile", "apparmor:x", "--lsm-mount-context", "c", "--lazy-pages", "c1")
    options = restore.read_options(parse("restore", *words))
    assert (options.lsm_profile, options.lsm_mount_context, options.lazy_pages) == ("apparmor:x", "c", True)


def test_annotations_name_crius_own_settings() -> None:
    options = checkpoint.read_options(parse("checkpoint", "c1"))
    assert asked.shared(options, {asked.CONFIG_ANNOTATION: "/mine"})["config_file"] == "/mine"
    assert "config_file" not in asked.shared(options, {asked.CONFIG_ANNOTATION: ""})


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("checkpoint", "--manage-cgroups-mode", "x", "c"), InvalidArgument, "invalid manage-cgroups-mode"),
        (("checkpoint", "--empty-ns", "pid", "c"), InvalidArgument, 'namespace "pid" is not supported'),
        (("checkpoint", "--page-server", "localhost", "c"), InvalidArgument, "ADDRESS:PORT"),
        (("checkpoint", "--page-server", "a:b", "c"), InvalidArgument, "Invalid port number"),
        (("checkpoint", "--page-server", "a:65536", "c"), InvalidArgument, "Invalid port number"),
        (("restore", "--no-pivot", "c"), NotImplementedHere, "--no-pivot"),
    ],
)
def test_refused(words: tuple[str, ...], error: type[BuoyError], message: str) -> None:
    command = checkpoint if words[0] == "checkpoint" else restore
    with pytest.raises(error, match=message):
        command.read_options(parse(*words))


def test_parents_and_status_descriptors_are_checked(tmp_path: Path) -> None:
    (tmp_path / "parent").mkdir()
    asked.check_parent(str(tmp_path / "images"), "../parent")
    for parent in ("../nothing", str(tmp_path / "parent")):
        with pytest.raises(InvalidArgument, match="--parent-path"):
            asked.check_parent(str(tmp_path / "images"), parent)
    reader, writer = os.pipe()
    asked.check_status_fd(writer)
    asked.check_status_fd(-1)
    with pytest.raises(InvalidArgument, match="not writable"):
        asked.check_status_fd(reader)
    os.close(writer)
    with pytest.raises(InvalidArgument, match="Bad file descriptor"):
        asked.check_status_fd(writer)
    os.close(reader)


def test_a_request_as_protobuf_has_it() -> None:
    # protoc --encode criu_req: type DUMP, opts of pid 300, a negative number, zero, and a nested one twice
    packet = messages.request(
        messages.DUMP,
        opts={
            "pid": 300,
            "images_dir_fd": -1,
            "manage_cgroups_mode": 0,
            "leave_running": True,
            "root": "/r",
            "ext_mnt": [{"key": "a", "val": "b"}, {"key": "c", "val": "d"}],
        },
    )
    opts = bytes.fromhex(
        "10ac02 08ffffffffffffffffff01 900200 1801 6a022f72 ba01060a01611201 62 ba01060a0163120164"
    )
    assert packet == bytes.fromhex("0801 12") + bytes([len(opts)]) + opts


def test_answers_are_read() -> None:
    assert messages.response(bytes.fromhex("0809 1001 4206 0801 1000 1800")) == Response(
        type=messages.FEATURE_CHECK, success=True, features={"mem_track": True, "lazy_pages": False}
    )
    # a notification, with a field that is not known
    said = messages.response(bytes.fromhex("0806 1001 2a10 0a0c706f73742d726573746f7265 1007 9a060179"))
    assert (said.type, said.script, said.pid) == (messages.NOTIFY, "post-restore", 7)
    failed = messages.response(bytes.fromhex("0801 1000 38ffffffffffffffffff01 4a02 6e6f"))
    assert (failed.success, failed.error_number, failed.message) == (False, -1, "no")


@pytest.mark.parametrize("packet", ["", "0a0561", "08", "1001", "0b"])
def test_damaged_answers(packet: str) -> None:
    with pytest.raises(DataLoss):
        messages.response(bytes.fromhex(packet))


def program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program named criu, alone in $PATH."""
    (folder / "criu").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "criu").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_no_criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match=r"CRIU \(version 3.16 or later\) is needed"):
        criu.check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo Version: 3.15.1", r"criu is version 3.15.1, and 3.16 or later is needed"),
        ("echo nonsense", "does not name a version"),
        # the version that it ought to be, but nothing behind it
        ('[ "$1" = --version ] && echo Version: 9.9', "CRIU 9.9 does not work with this kernel"),
    ],
)
def test_criu_that_will_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    program(tmp_path, text, monkeypatch)
    with pytest.raises(FailedPrecondition, match=message):
        criu.check()


def test_the_error_is_the_one_that_matters(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(
        "(00.01) Error (criu/util.c:1): rlimit: not allowed\n"
        "(00.02) Error (criu/util.c:3): exited, status=1\n"
        "(00.03) Error (criu/net.c:2): net: Locking network failed\n"
        "(00.04) Error (criu/cr-dump.c:4): Dumping FAILED.\n"
    )
    answer = Response(type=messages.DUMP, success=False, message="what it says itself")
    error = criu.failure(messages.DUMP, answer, str(log))
    assert error.message == f"criu failed: type DUMP errno 0: net: Locking network failed (log file: {log})"
    missing = criu.failure(messages.DUMP, answer, str(tmp_path / "none"))
    assert "what it says itself" in missing.message
