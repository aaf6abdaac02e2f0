"""The head of a seccomp program that answers ENOSYS for system calls newer than its profile.

A profile lists what its author knew. A newer libc tries newer calls first and falls back on ENOSYS only; the
profile's EPERM would break it. runc puts such a head before libseccomp's program (its `patchbpf`), and so do
we. Sources: seccomp(2), linux/audit.h, linux/filter.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping

_LOAD, _JUMP, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_SET, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x45, 0x06
_RETURN_ENOSYS = 0x00050000 | errno.ENOSYS
_NUMBER_OFFSET, _ARCH_OFFSET = 0, 4

# libseccomp's tokens are the kernel's AUDIT_ARCH_* values but for x32, which the kernel tells from x86_64 by
# a bit of the number
_X32 = 0x4000003E
_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_S390 = (0x00000016, 0x80000016)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def prepend_enosys_stub(program: bytes, largest: Mapping[int, int]) -> bytes:
    """`program` with the head for `largest`: by libseccomp's architecture token, the highest call number that
    is known. Pure.

    Architectures that are not named, and x32 or x86_64 without the other, go to the program, which has its
    own answer.
    """
    kernel_archs = sorted({_X86_64 if token == _X32 else token for token in largest})
    sections = [(arch, _section(arch, largest)) for arch in kernel_archs]
    head = _instruction(_LOAD, _ARCH_OFFSET)
    for index, (arch, section) in enumerate(sections):
        # a section that applies ends the head: its last instruction jumps over the sections that follow
        behind = sum(1 + len(later) // 8 + 1 for _, later in sections[index + 1 :])
        head += _instruction(_JUMP_EQUAL, arch, if_false=len(section) // 8 + 1)
        head += section + _instruction(_JUMP, behind)
    return head + program


def _section(arch: int, largest: Mapping[int, int]) -> bytes:
    load = _instruction(_LOAD, _NUMBER_OFFSET)
    answer = _instruction(_RETURN, _RETURN_ENOSYS)
    if arch != _X86_64:
        newer = _instruction(_JUMP_GREATER, largest[arch], if_false=1)
        if arch in _S390:
            # call 0 stands for every number that s390 cannot encode and its kernel does not know
            return load + _instruction(_JUMP_EQUAL, 0, if_true=1) + newer + answer
        return load + newer + answer
    if _X32 not in largest:
        return (
            load
            + _instruction(_JUMP_SET, _X32_BIT, 2)
            + _instruction(_JUMP_GREATER, largest[arch], 0, 1)
            + answer
        )
    if _X86_64 not in largest:
        return (
            load
            + _instruction(_JUMP_SET, _X32_BIT, 0, 2)
            + _instruction(_JUMP_GREATER, largest[_X32], 0, 1)
            + answer
        )
    return (
        load
        + _instruction(_JUMP_SET, _X32_BIT, if_true=1)
        + _instruction(_JUMP_GREATER, largest[_X86_64], if_true=1, if_false=2)
        + _instruction(_JUMP_GREATER, largest[_X32], if_false=1)
        + answer
    )
