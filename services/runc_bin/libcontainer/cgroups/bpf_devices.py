"""Device rules on cgroup v2: an eBPF program of type BPF_PROG_TYPE_CGROUP_DEVICE, written by hand and
attached with bpf(2).

The kernel calls it at each open and mknod of a device node with `struct bpf_cgroup_dev_ctx {u32 access_type,
major, minor}`; the low half of access_type is the kind, the high half the access wanted; 1 allows, 0 refuses
with EPERM. Sources: bpf(2), linux/bpf.h, Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys

from errdefs import FailedPrecondition, InvalidArgument

from runc_bin import contexts

from .device_rules import ALL, WILDCARD, Device, DeviceState

_SYSCALL = {
    "x86_64": 321,
    "i686": 357,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "armv7l": 386,
    "ppc64le": 361,
    "s390x": 351,
}
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_F_ALLOW_MULTI, _F_REPLACE = 2, 4
_KIND = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}

_LDX_W, _AND32_K, _RSH32_K, _MOV32_X, _MOV32_K = 0x61, 0x54, 0x74, 0xBC, 0xB4
_JNE_K, _JNE_X, _EXIT = 0x55, 0x5D, 0x95
_ATTR_SIZE = 128


def _instruction(code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    registers = (src << 4 | dst) if sys.byteorder == "little" else (dst << 4 | src)
    return struct.pack("=BBhI", code, registers, offset, immediate & 0xFFFFFFFF)


def compile_program(state: DeviceState) -> bytes:
    """The program for a device state, as an array of 8-byte instructions. Pure.

    r2 = kind, r3 = access, r4 = major, r5 = minor; then one block per exception, which answers when all of
    its tests hold.
    """
    code = [
        _instruction(_LDX_W, dst=2, src=1, offset=0),
        _instruction(_AND32_K, dst=2, immediate=0xFFFF),
        _instruction(_LDX_W, dst=3, src=1, offset=0),
        _instruction(_RSH32_K, dst=3, immediate=16),
        _instruction(_LDX_W, dst=4, src=1, offset=4),
        _instruction(_LDX_W, dst=5, src=1, offset=8),
    ]
    for device, access in sorted(state.exceptions.items()):
        code += _block(device, access, answer=int(not state.default_allow))
    code += [_instruction(_MOV32_K, dst=0, immediate=int(state.default_allow)), _instruction(_EXIT)]
    return b"".join(code)


def _block(device: Device, access: frozenset[str], answer: int) -> list[bytes]:
    for value in (device.major, device.minor):
        if not WILDCARD <= value <= 0xFFFFFFFF:
            raise InvalidArgument(f"invalid device number {value}")
    tests: list[tuple[int, int, int, int]] = [(_JNE_K, 2, 0, _KIND[device.kind])]
    plain: list[bytes] = []
    if access != ALL:
        # the exception answers only for accesses that lie within it: (wanted & granted) != wanted skips the
        # block
        plain = [
            _instruction(_MOV32_X, dst=1, src=3),
            _instruction(_AND32_K, dst=1, immediate=sum(_ACCESS[letter] for letter in access)),
        ]
        tests.append((_JNE_X, 1, 3, 0))
    if device.major != WILDCARD:
        tests.append((_JNE_K, 4, 0, device.major))
    if device.minor != WILDCARD:
        tests.append((_JNE_K, 5, 0, device.minor))
    tail = [_instruction(_MOV32_K, dst=0, immediate=answer), _instruction(_EXIT)]
    length = len(tests) + len(plain) + len(tail)
    block: list[bytes] = []
    for code, dst, src, immediate in tests:
        if code == _JNE_X:
            block += plain
        block.append(_instruction(code, dst, src, length - len(block) - 1, immediate))
    return block + tail


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """bpf(2): result and the attributes as the kernel left them; OSError."""
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise FailedPrecondition(f"device rules on cgroup v2 are not known for {os.uname().machine}")
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTR_SIZE, b"\0"), _ATTR_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(
        ctypes.c_long(number), ctypes.c_long(command), ctypes.byref(buffer), ctypes.c_ulong(_ATTR_SIZE)
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result, buffer.raw


def load(program: bytes) -> int:
    """Load the program into the kernel: its close-on-exec descriptor. OSError with the verifier's words."""
    instructions = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(16384)

    def attributes(level: int) -> bytes:
        return struct.pack(
            "=IIQQIIQ",
            _PROG_TYPE_CGROUP_DEVICE,
            len(program) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(license_text),
            level,
            len(log) if level else 0,
            ctypes.addressof(log) if level else 0,
        )

    try:
        try:
            return _bpf(_PROG_LOAD, attributes(0))[0]
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            # before Linux 5.11 a program counted against RLIMIT_MEMLOCK, and too low a limit shows as EPERM
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return _bpf(_PROG_LOAD, attributes(0))[0]
    except OSError as error:
        with contexts.suppress(OSError):
            _bpf(_PROG_LOAD, attributes(1))
        raise OSError(
            error.errno, f"{error.strerror}: {log.value.decode(errors='replace')}".rstrip(": \n")
        ) from None


def attached(directory: int) -> list[int]:
    """The ids of the device programs attached to the cgroup that `directory` is open on."""
    room = 64  # the kernel's limit for one cgroup
    ids = (ctypes.c_uint32 * room)()
    query = struct.pack("=IIIIQI", directory, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), room)
    _, answer = _bpf(_PROG_QUERY, query)
    count = struct.unpack_from("=I", answer, 24)[0]
    return list(ids[:count])


def attach(path: str, state: DeviceState) -> None:
    """Make `state` the device rules of the cgroup at `path`, in place of our former program if there is one.

    The new program is attached before the old one is removed (or replaces it in one step): there is no moment
    without rules. OSError as bpf(2) gives it.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        old = [fd for fd in map(_by_id, attached(directory)) if fd is not None]
        try:
            program = load(compile_program(state))
            try:
                _attach(directory, program, old)
            finally:
                os.close(program)
        finally:
            for fd in old:
                os.close(fd)
    finally:
        os.close(directory)


def _attach(directory: int, program: int, old: list[int]) -> None:
    if len(old) == 1:
        try:
            _bpf(
                _PROG_ATTACH,
                struct.pack(
                    "=IIIII", directory, program, _ATTACH_CGROUP_DEVICE, _F_ALLOW_MULTI | _F_REPLACE, old[0]
                ),
            )
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # BPF_F_REPLACE is of Linux 5.6
                raise
    _bpf(_PROG_ATTACH, struct.pack("=IIII", directory, program, _ATTACH_CGROUP_DEVICE, _F_ALLOW_MULTI))
    for fd in old:
        _bpf(_PROG_DETACH, struct.pack("=III", directory, fd, _ATTACH_CGROUP_DEVICE))


def _by_id(identity: int) -> int | None:
    try:
        return _bpf(_PROG_GET_FD_BY_ID, struct.pack("=I", identity))[0]
    except OSError as error:
        # a program that a security module hides can only restrict further: leave it
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOENT):
            return None
        raise
