"""System calls that Python's standard library lacks (or has only from 3.12 on), one small function each.

No policy lives here. A failed call raises `OSError` with the kernel's errno; paths in the error are the
caller's own. Paths are `str` or `bytes` (`os.fsencode`), descriptors and flags are integers with the
kernel's names. Sources: the man pages of section 2 and include/uapi/linux. Numbers are those of x86_64 and
aarch64.
"""

from __future__ import annotations

import os
import struct
from typing import Any

from linux.libc import Int, Long, Text, UInt, ULong, function, get_errno, output, python_function

StrPath = str | bytes

AT_FDCWD = -100
AT_EACCESS = 0x200
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000
SIGCHLD = 17

CLOSE_RANGE_CLOEXEC = 4

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

KEYCTL_JOIN_SESSION_KEYRING = 1
KEYCTL_SETPERM = 5
KEYCTL_DESCRIBE = 6

_ARM = os.uname().machine == "aarch64"
_NR = {
    "pivot_root": 41 if _ARM else 155,
    "capget": 90 if _ARM else 125,
    "capset": 91 if _ARM else 126,
    "keyctl": 219 if _ARM else 250,
    "ioprio_set": 30 if _ARM else 251,
    "sched_setattr": 274 if _ARM else 314,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "close_range": 436,
    "clone3": 435,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}


def _syscall(*arguments: Any) -> Any:
    return function("syscall", Long, Long, *arguments)


def _raise(*paths: StrPath) -> None:
    number = get_errno()
    names = [os.fsdecode(path) for path in paths if path]
    raise OSError(number, os.strerror(number), *names[:1])


def _path(path: StrPath) -> bytes:
    return path if isinstance(path, bytes) else os.fsencode(path)


_mount = function("mount", Int, Text, Text, Text, ULong, Text)
_umount2 = function("umount2", Int, Text, Int)
_unshare = function("unshare", Int, Int)
_setns = function("setns", Int, Int, Int)
_sethostname = function("sethostname", Int, Text, ULong)
_setdomainname = function("setdomainname", Int, Text, ULong)
_prctl = function("prctl", Int, Int, ULong, ULong, ULong, ULong)
_prlimit = function("prlimit", Int, Int, Int, Text, Text)
_inotify_init = function("inotify_init1", Int, Int)
_inotify_add_watch = function("inotify_add_watch", Int, Int, Text, UInt)
_personality = function("personality", Int, ULong)
_statfs = function("statfs", Int, Text, Text)
_fstatfs = function("fstatfs", Int, Int, Text)
_faccessat = function("faccessat", Int, Int, Text, Int, Int)
# The clone call keeps the interpreter lock: the child must own it when it comes back.
_clone3 = python_function("syscall", Long, Long, Text, ULong)
_before_fork = python_function("PyOS_BeforeFork", None)
_after_fork_in_child = python_function("PyOS_AfterFork_Child", None)
_after_fork_in_parent = python_function("PyOS_AfterFork_Parent", None)
_pivot_root = _syscall(Text, Text)
_capget = _syscall(Text, Text)
_capset = _syscall(Text, Text)
_keyctl = _syscall(Int, ULong, ULong, ULong)
_keyctl_name = _syscall(Int, Text)
_keyctl_buffer = _syscall(Int, Long, Text, ULong)
_ioprio_set = _syscall(Int, Int, Int)
_sched_setattr = _syscall(Int, Text, UInt)
_open_tree = _syscall(Int, Text, UInt)
_move_mount = _syscall(Int, Text, Int, Text, UInt)
_fsopen = _syscall(Text, UInt)
_fsconfig = _syscall(Int, UInt, Text, Text, Int)
_fsmount = _syscall(Int, UInt, UInt)
_pidfd_getfd = _syscall(Int, Int, UInt)
_close_range = _syscall(UInt, UInt, UInt)
_openat2 = _syscall(Int, Text, Text, ULong)
_mount_setattr = _syscall(Int, Text, UInt, Text, ULong)


def mount(source: StrPath, target: StrPath, fstype: StrPath, flags: int, data: StrPath = "") -> None:
    """mount(2)."""
    kind, text = _path(fstype), _path(data)
    if _mount(_path(source), _path(target), kind or None, flags, text or None) < 0:
        _raise(target)


def umount2(target: StrPath, flags: int = 0) -> None:
    """umount2(2)."""
    if _umount2(_path(target), flags) < 0:
        _raise(target)


def unshare(flags: int) -> None:
    """unshare(2); `flags` are CLONE_NEW*."""
    if _unshare(flags) < 0:
        _raise()


def setns(fd: int, flags: int = 0) -> None:
    """setns(2): `fd` is a namespace file, or a pidfd with `flags` naming the kinds to join."""
    if _setns(fd, flags) < 0:
        _raise()


def clone(flags: int, *, cgroup_fd: int | None = None) -> int:
    """fork with `flags` (CLONE_NEW*, CLONE_PARENT): 0 in the child, its pid in the parent; clone3(2).

    With `cgroup_fd`, a directory of a cgroup v2 tree, the child is born in that group (Linux 5.7). For a
    process with one thread only: the interpreter's fork hooks run as they do for `os.fork`, but glibc's do
    not, so the child must not create threads. See PyOS_AfterFork_Child in the C API.
    """
    if cgroup_fd is not None:
        flags |= CLONE_INTO_CGROUP
    exit_signal = 0 if flags & CLONE_PARENT else SIGCHLD  # a sibling has the caller's
    arguments = struct.pack("=11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup_fd or 0)
    _before_fork()
    pid = int(_clone3(_NR["clone3"], arguments, len(arguments)))
    if pid == 0:
        _after_fork_in_child()
        return 0
    number = get_errno()
    _after_fork_in_parent()
    if pid < 0:
        raise OSError(number, os.strerror(number))
    return pid


def pivot_root(new_root: StrPath, put_old: StrPath) -> None:
    """pivot_root(2)."""
    if _pivot_root(_NR["pivot_root"], _path(new_root), _path(put_old)) < 0:
        _raise(new_root)


def sethostname(name: str) -> None:
    """sethostname(2)."""
    raw = os.fsencode(name)
    if _sethostname(raw, len(raw)) < 0:
        _raise()


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    raw = os.fsencode(name)
    if _setdomainname(raw, len(raw)) < 0:
        _raise()


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """prctl(2); returns the call's own value."""
    result = int(_prctl(option, a, b, c, d))
    if result < 0:
        _raise()
    return result


def prlimit(pid: int, number: int, wanted: tuple[int, int] | None = None) -> tuple[int, int]:
    """prlimit(2): the former (soft, hard) limit `number` (RLIMIT_*) of a process (0: this one), which gets
    the `wanted` one. 2^64-1 is no limit.
    """
    former = output(16)
    if _prlimit(pid, number, None if wanted is None else struct.pack("=2Q", *wanted), former) < 0:
        _raise()
    soft, hard = struct.unpack("=2Q", former)
    return soft, hard


def inotify_init(flags: int) -> int:
    """inotify_init1(2): a descriptor to add watches to; `flags` are O_CLOEXEC and O_NONBLOCK."""
    fd = int(_inotify_init(flags))
    if fd < 0:
        _raise()
    return fd


def inotify_add_watch(fd: int, path: StrPath, mask: int) -> int:
    """inotify_add_watch(2); `mask` are IN_*. Returns the number of the watch."""
    number = int(_inotify_add_watch(fd, _path(path), mask))
    if number < 0:
        _raise(path)
    return number


def personality(persona: int) -> int:
    """personality(2); returns the former one."""
    result = int(_personality(persona))
    if result < 0:
        _raise()
    return result


_CAP_VERSION_3 = 0x20080522


def capget() -> tuple[int, int, int]:
    """The (effective, permitted, inheritable) masks of this process; capget(2)."""
    data = output(24)
    if _capget(_NR["capget"], struct.pack("=Ii", _CAP_VERSION_3, 0), data) < 0:
        _raise()
    e0, p0, i0, e1, p1, i1 = struct.unpack("=6I", data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set this process's capability masks (bit n is capability n); capset(2)."""
    low = 0xFFFFFFFF
    data = struct.pack(
        "=6I",
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> 32,
        permitted >> 32,
        inheritable >> 32,
    )
    if _capset(_NR["capset"], struct.pack("=Ii", _CAP_VERSION_3, 0), data) < 0:
        _raise()


def join_session_keyring(name: str) -> int:
    """Join or make the session keyring of that name; returns its serial. keyctl(2)."""
    serial = int(_keyctl_name(_NR["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, name.encode()))
    if serial < 0:
        _raise()
    return serial


def describe_key(serial: int) -> str:
    """`type;uid;gid;perm;description` of a key; KEYCTL_DESCRIBE of keyctl(2)."""
    buffer = output(4096)
    size = int(_keyctl_buffer(_NR["keyctl"], KEYCTL_DESCRIBE, serial, buffer, len(buffer)))
    if size < 0:
        _raise()
    text: bytes = buffer.value
    return text.decode(errors="replace")


def set_key_permissions(serial: int, permissions: int) -> None:
    """KEYCTL_SETPERM of keyctl(2)."""
    if _keyctl(_NR["keyctl"], KEYCTL_SETPERM, serial, permissions, 0) < 0:
        _raise()


def ioprio_set(which: int, who: int, priority: int) -> None:
    """ioprio_set(2); `priority` is class << 13 | level."""
    if _ioprio_set(_NR["ioprio_set"], which, who, priority) < 0:
        _raise()


def sched_setattr(
    policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int, period: int
) -> None:
    """sched_setattr(2) of this process; times in nanoseconds."""
    attributes = struct.pack("=IIQiIQQQ", 48, policy, flags, nice, priority, runtime, deadline, period)
    if _sched_setattr(_NR["sched_setattr"], 0, attributes, 0) < 0:
        _raise()


def open_tree(dir_fd: int, path: StrPath, flags: int) -> int:
    """open_tree(2): a descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy of it."""
    fd = int(_open_tree(_NR["open_tree"], dir_fd, _path(path), flags))
    if fd < 0:
        _raise(path)
    return fd


def move_mount(from_fd: int, from_path: StrPath, to_fd: int, to_path: StrPath, flags: int) -> None:
    """move_mount(2)."""
    if _move_mount(_NR["move_mount"], from_fd, _path(from_path), to_fd, _path(to_path), flags) < 0:
        _raise(to_path)


def fsopen(fstype: str, flags: int = 1) -> int:
    """fsopen(2): a context to configure a new file system in; flag 1 is FSOPEN_CLOEXEC."""
    fd = int(_fsopen(_NR["fsopen"], fstype.encode(), flags))
    if fd < 0:
        _raise()
    return fd


def fsconfig(
    fd: int, command: int, key: str | None = None, value: StrPath | None = None, aux: int = 0
) -> None:
    """fsconfig(2)."""
    raw_key = None if key is None else key.encode()
    raw_value = None if value is None else _path(value)
    if _fsconfig(_NR["fsconfig"], fd, command, raw_key, raw_value, aux) < 0:
        _raise()


def fsmount(fd: int, flags: int, attributes: int) -> int:
    """fsmount(2): a descriptor of a detached mount; `attributes` are MOUNT_ATTR_*; flag 1 is
    FSMOUNT_CLOEXEC.
    """
    made = int(_fsmount(_NR["fsmount"], fd, flags, attributes))
    if made < 0:
        _raise()
    return made


def mount_setattr(
    dir_fd: int,
    path: StrPath,
    flags: int,
    *,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns: int = 0,
) -> None:
    """mount_setattr(2); `flags` are AT_*, `userns` a user namespace descriptor when set_ has
    MOUNT_ATTR_IDMAP.
    """
    attributes = struct.pack("=4Q", set_, clear, propagation, userns)
    if _mount_setattr(_NR["mount_setattr"], dir_fd, _path(path), flags, attributes, len(attributes)) < 0:
        _raise(path)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2): close the descriptors first to last, or mark them with CLOSE_RANGE_CLOEXEC."""
    if _close_range(_NR["close_range"], first, last, flags) < 0:
        _raise()


def openat2(dir_fd: int, path: StrPath, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2); O_CLOEXEC is added. `resolve` are RESOLVE_*."""
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, mode, resolve)
    fd = int(_openat2(_NR["openat2"], dir_fd, _path(path), how, len(how)))
    if fd < 0:
        _raise(path)
    return fd


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A copy of descriptor `number` of the process behind a pidfd, closed on exec; pidfd_getfd(2)."""
    fd = int(_pidfd_getfd(_NR["pidfd_getfd"], pidfd, number, 0))
    if fd < 0:
        _raise()
    return fd


def check_access(path: StrPath, mode: int) -> None:
    """faccessat(2) as the effective user; `mode` is os.R_OK, W_OK, X_OK. `os.access` hides the error."""
    if _faccessat(AT_FDCWD, _path(path), mode, AT_EACCESS) < 0:
        _raise(path)


def filesystem_type(target: StrPath | int) -> int:
    """The magic number (f_type) of the file system that a path or descriptor lies on; statfs(2)."""
    buffer = output(256)
    result = _fstatfs(target, buffer) if isinstance(target, int) else _statfs(_path(target), buffer)
    if result < 0:
        _raise(*(() if isinstance(target, int) else (target,)))
    return int(struct.unpack_from("=Q", buffer)[0])
