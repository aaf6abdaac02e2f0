"""Compiled seccomp programs, in the kernel and instruction by instruction."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import errdefs
import pytest
from dockerd_api import security
from runc_bin.libcontainer import seccomp
from runc_bin.libcontainer.seccomp_stub import prepend_enosys_stub

X86_64, I386 = 0xC000003E, 0x40000003
EPERM, ENOSYS = 1, 38
ALLOW, REFUSE = 0x7FFF0000, 0x00050000

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers are x86_64's")


def run(program: bytes, number: int, arch: int = X86_64, *arguments: int) -> int:
    """What a seccomp program answers: a small interpreter of classic BPF."""
    given = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", number, arch, 0, *given)
    counter = accumulator = 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, counter * 8)
        counter += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("=I", data, value)[0]
            case 0x05:
                counter += value
            case 0x15:
                counter += if_true if accumulator == value else if_false
            case 0x25:
                counter += if_true if accumulator > value else if_false
            case 0x35:
                counter += if_true if accumulator >= value else if_false
            case 0x45:
                counter += if_true if accumulator & value else if_false
            case 0x54:
                accumulator &= value
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(hex(code))


def default_program(*capabilities: str) -> bytes:
    return seccomp.compile_filter(security.seccomp_profile(capabilities, "amd64", (6, 1)))


def rule(name: str, action: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": action, **more}


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **more}


@pytest.mark.parametrize(
    ("number", "capabilities", "verdict"),
    [
        (0, (), ALLOW),  # read
        (165, (), REFUSE | EPERM),  # mount
        (165, ("CAP_SYS_ADMIN",), ALLOW),
        (272, (), REFUSE | EPERM),  # unshare
        (425, (), REFUSE | EPERM),  # io_uring_setup
        (435, (), REFUSE | ENOSYS),  # clone3
        (435, ("CAP_SYS_ADMIN",), ALLOW),
        (161, (), REFUSE | EPERM),  # chroot
        (161, ("CAP_SYS_CHROOT",), ALLOW),
        (321, ("CAP_BPF",), ALLOW),  # bpf
        (9999, (), REFUSE | ENOSYS),  # a call of the future
    ],
)
def test_default_profile(number: int, capabilities: tuple[str, ...], verdict: int) -> None:
    assert run(default_program(*capabilities), number) == verdict


@pytest.mark.parametrize(
    ("family", "verdict"), [(1, ALLOW), (37, ALLOW), (39, ALLOW), (41, ALLOW), (45, ALLOW)]
)
def test_socket_families(family: int, verdict: int) -> None:
    assert run(default_program(), 41, X86_64, family) == verdict


@pytest.mark.parametrize("family", [38, 40, 38 | 1 << 32, 40 | 1 << 63, 0xFFFFFFFF00000028])
def test_crypto_and_vm_sockets_are_refused_whatever_the_upper_half_says(family: int) -> None:
    assert run(default_program(), 41, X86_64, family) == REFUSE | EPERM


def test_clone_makes_no_namespace() -> None:
    program = default_program()
    assert run(program, 56, X86_64, 0x01200011) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert run(program, 56, X86_64, flag | 17) == REFUSE | EPERM


def test_other_architectures() -> None:
    program = default_program()
    assert run(program, 3, I386) == ALLOW  # read
    assert run(program, 21, I386) == REFUSE | EPERM  # mount
    assert run(program, 9999, I386) == REFUSE | ENOSYS
    assert run(program, 0x40000000 | 39) == ALLOW  # x32 getpid
    assert run(program, 0x40000000 | 9999) == REFUSE | ENOSYS
    assert run(program, 0, 0xC00000B7) == 0  # aarch64 on x86: killed


@pytest.mark.parametrize(
    ("op", "value", "second", "passes", "fails"),
    [
        ("SCMP_CMP_EQ", 5, 0, 5, 4),
        ("SCMP_CMP_NE", 5, 0, 4, 5),
        ("SCMP_CMP_LT", 5, 0, 4, 5),
        ("SCMP_CMP_LE", 5, 0, 5, 6),
        ("SCMP_CMP_GT", 5, 0, 6, 5),
        ("SCMP_CMP_GE", 5, 0, 5, 4),
        ("SCMP_CMP_MASKED_EQ", 0xF0, 0x20, 0x2F, 0x3F),
    ],
)
def test_argument_tests(op: str, value: int, second: int, passes: int, fails: int) -> None:
    test = {"index": 1, "op": op, "value": value, "valueTwo": second}
    program = seccomp.compile_filter(profile(rule("kill", args=[test])))
    assert run(program, 62, X86_64, 0, passes) == ALLOW
    assert run(program, 62, X86_64, 0, fails) == REFUSE | EPERM


def test_several_tests_of_one_argument_hold_one_by_one() -> None:
    tests = [{"index": 0, "op": "SCMP_CMP_EQ", "value": value} for value in (3, 7)]
    program = seccomp.compile_filter(profile(rule("kill", args=tests)))
    assert [run(program, 62, X86_64, value) for value in (3, 7, 5)] == [ALLOW, ALLOW, REFUSE | EPERM]


@pytest.mark.parametrize(
    ("action", "more", "verdict"),
    [
        ("SCMP_ACT_KILL", {}, 0),
        ("SCMP_ACT_KILL_THREAD", {}, 0),
        ("SCMP_ACT_KILL_PROCESS", {}, 0x80000000),
        ("SCMP_ACT_TRAP", {}, 0x00030000),
        ("SCMP_ACT_ERRNO", {}, REFUSE | EPERM),
        ("SCMP_ACT_ERRNO", {"errnoRet": 13}, REFUSE | 13),
        ("SCMP_ACT_TRACE", {"errnoRet": 9}, 0x7FF00009),
        ("SCMP_ACT_LOG", {}, 0x7FFC0000),
    ],
)
def test_actions(action: str, more: dict[str, Any], verdict: int) -> None:
    program = seccomp.compile_filter(profile(rule("kill", action, **more), default="SCMP_ACT_ALLOW"))
    assert run(program, 62) == verdict
    assert run(program, 63) == ALLOW
    assert run(program, 9999) == ALLOW  # what allows all needs no answer for the future


def test_default_error_number_and_unknown_names() -> None:
    program = seccomp.compile_filter(profile(rule("close"), rule("no_such_call"), defaultErrnoRet=13))
    assert run(program, 3) == ALLOW
    assert run(program, 4) == REFUSE | ENOSYS  # above the only call that the profile knows
    program = seccomp.compile_filter(profile(rule("kill"), defaultErrnoRet=13))
    assert run(program, 1) == REFUSE | 13


@pytest.mark.parametrize(
    ("largest", "number", "arch", "verdict"),
    [
        ({X86_64: 10}, 10, X86_64, 1),
        ({X86_64: 10}, 11, X86_64, REFUSE | ENOSYS),
        ({X86_64: 10}, 0x4000000B, X86_64, 1),  # x32 is not named
        ({0x4000003E: 0x4000000A}, 11, X86_64, 1),  # nor is x86_64
        ({0x4000003E: 0x4000000A}, 0x4000000B, X86_64, REFUSE | ENOSYS),
        ({X86_64: 10, 0x4000003E: 0x4000000A, I386: 5}, 0x4000000A, X86_64, 1),
        ({X86_64: 10, 0x4000003E: 0x4000000A, I386: 5}, 0x4000000B, X86_64, REFUSE | ENOSYS),
        ({X86_64: 10, 0x4000003E: 0x4000000A, I386: 5}, 6, I386, REFUSE | ENOSYS),
        ({X86_64: 10, 0x4000003E: 0x4000000A, I386: 5}, 5, I386, 1),
        ({X86_64: 10, I386: 5}, 77, 0xC00000B7, 1),
        ({0x80000016: 10}, 0, 0x80000016, REFUSE | ENOSYS),  # s390x: 0 stands for numbers it cannot encode
        ({0x80000016: 10}, 1, 0x80000016, 1),
    ],
)
def test_stub(largest: dict[int, int], number: int, arch: int, verdict: int) -> None:
    returns_one = struct.pack("=HBBI", 0x06, 0, 0, 1)
    assert run(prepend_enosys_stub(returns_one, largest), number, arch) == verdict


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (profile(default="SCMP_ACT_WHAT"), errdefs.InvalidArgument),
        (profile(rule("read", "SCMP_ACT_WHAT")), errdefs.InvalidArgument),
        (profile(rule("")), errdefs.InvalidArgument),
        (profile(architectures=["SCMP_ARCH_PDP11"]), errdefs.InvalidArgument),
        (profile(flags=["SECCOMP_FILTER_FLAG_WHAT"]), errdefs.InvalidArgument),
        (profile(rule("read", args=[{"index": 6, "op": "SCMP_CMP_EQ"}])), errdefs.InvalidArgument),
        (profile(rule("read", args=[{"index": 0, "op": "=="}])), errdefs.InvalidArgument),
        (profile(rule("read", "SCMP_ACT_ERRNO", errnoRet=-1)), errdefs.InvalidArgument),
        (profile(rule("read", "SCMP_ACT_ALLOW", errnoRet=1)), errdefs.InvalidArgument),
        (profile(default="SCMP_ACT_KILL", defaultErrnoRet=1), errdefs.InvalidArgument),
        (profile({"names": [], "action": "SCMP_ACT_ERRNO"}), errdefs.InvalidArgument),
        (profile({"names": "read", "action": "SCMP_ACT_ERRNO"}), errdefs.InvalidArgument),
        (profile(rule("read", args={"index": 0})), errdefs.InvalidArgument),
        ({"syscalls": 1}, errdefs.InvalidArgument),
        ({"syscalls": [1]}, errdefs.InvalidArgument),
        ({"architectures": "SCMP_ARCH_X86"}, errdefs.InvalidArgument),
        (profile(flags=[[]]), errdefs.InvalidArgument),
    ],
)
def test_bad_profiles(document: dict[str, Any], error: type[errdefs.BuoyError]) -> None:
    with pytest.raises(error):
        seccomp.compile_filter(document)


def test_nothing_asked_is_no_program() -> None:
    assert seccomp.compile_filter({}) == b""
    seccomp.install(b"")


def test_programs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = profile(rule("read"), rule("write"))
    first = seccomp.compile_filter(document)
    assert seccomp.compile_filter(dict(reversed(document.items()))) is first
    monkeypatch.setattr(seccomp, "_programs", {})
    assert seccomp.compile_filter(document, str(tmp_path)) == first
    (stored,) = tmp_path.iterdir()
    assert stored.read_bytes() == first
    stored.write_bytes(struct.pack("=HBBI", 0x06, 0, 0, ALLOW))
    monkeypatch.setattr(seccomp, "_programs", {})
    assert seccomp.compile_filter(document, str(tmp_path)) != first
    stored.chmod(0o666)  # anybody's file decides nothing
    monkeypatch.setattr(seccomp, "_programs", {})
    assert seccomp.compile_filter(document, str(tmp_path)) == first


def in_child(program: bytes, body: Callable[[Callable[..., int]], list[int]]) -> list[int]:
    """Run `body` in a forked process under the program.

    It gets a function that makes a call: minus errno on an error.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.prctl(38, 1, 0, 0, 0)  # no_new_privs

            def call(number: int, *arguments: int) -> int:
                ctypes.set_errno(0)
                result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(value) for value in arguments))
                return -ctypes.get_errno() if result < 0 else int(result)

            seccomp.install(program)
            results = body(call)
            os.write(writer, struct.pack(f"={len(results)}i", *results))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        output = pipe.read()
    os.waitpid(child, 0)
    return list(struct.unpack(f"={len(output) // 4}i", output))


def test_installed_filter_of_a_default_container() -> None:
    def probe(call: Callable[..., int]) -> list[int]:
        return [
            call(39) > 0,  # getpid
            call(165, 0, 0, 0, 0, 0),  # mount
            call(272, 0x20000),  # unshare
            call(435, 0, 0),  # clone3
            call(900),  # of the future
            call(41, 38, 5, 0),  # AF_ALG
            call(41, 40, 1, 0),  # AF_VSOCK
            call(41, 1, 1, 0) > 0,  # AF_UNIX
            call(135, 0xFFFFFFFF),  # personality: ask
            call(135, 0x0040000),  # ADDR_NO_RANDOMIZE
        ]

    assert in_child(default_program(), probe) == [
        1,
        -EPERM,
        -EPERM,
        -ENOSYS,
        -ENOSYS,
        -EPERM,
        -EPERM,
        1,
        0,
        -EPERM,
    ]


def test_flags() -> None:
    assert seccomp.check_flags(None) == 4
    assert seccomp.check_flags([]) == 0
    assert seccomp.check_flags(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]) == 3
    assert seccomp.check_flags(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]) == 32


def test_who_is_to_be_asked() -> None:
    assert not seccomp.notifies(profile(rule("read")))
    assert not seccomp.notifies(profile(rule("read"), listenerPath="/x", listenerMetadata="y"))
    assert seccomp.notifies(profile(rule("read", "SCMP_ACT_NOTIFY"), listenerPath="/x"))
    assert seccomp.notifies(profile(default="SCMP_ACT_NOTIFY", listenerPath="/x"))
    for bad in (
        profile(rule("read", "SCMP_ACT_NOTIFY")),
        profile(default="SCMP_ACT_NOTIFY"),
        profile(listenerMetadata="y"),
        profile(listenerPath=1),
    ):
        with pytest.raises(errdefs.InvalidArgument, match=r"linux\.seccomp\.listener"):
            seccomp.notifies(bad)


def test_the_listener_is_no_part_of_the_program() -> None:
    one, other = (
        profile(rule("read", "SCMP_ACT_NOTIFY"), listenerPath=path, listenerMetadata=path) for path in "ab"
    )
    assert seccomp.compile_filter(one) is seccomp.compile_filter(other)
    assert run(seccomp.compile_filter(one), 0) == 0x7FC00000
