"""Seccomp: from the OCI `linux.seccomp` object to a BPF program, and the program into the kernel.

Compiling and installing are apart: compiling needs libseccomp.so.2 and is done outside the container, once
per profile; installing is one system call with nothing loaded, and so can be the last step before the
container's program runs. Sources: seccomp(2), seccomp_rule_add(3), runtime-spec config-linux.md "Seccomp".
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Collection, Mapping
from typing import Any

from errdefs import FailedPrecondition, Internal, InvalidArgument

try:
    from _blake2 import blake2b  # hashlib would bring OpenSSL along, and 5 ms
except ImportError:  # an interpreter that keeps it elsewhere
    from hashlib import blake2b

from runc_bin import contexts
from runc_bin.document import render

from .fields import objects, strings, text
from .seccomp_stub import prepend_enosys_stub

_KILL_PROCESS, _KILL_THREAD, _TRAP, _ERRNO = 0x80000000, 0x00000000, 0x00030000, 0x00050000
_TRACE, _LOG, _ALLOW, _NOTIFY = 0x7FF00000, 0x7FFC0000, 0x7FFF0000, 0x7FC00000
ACTIONS = {
    "SCMP_ACT_KILL": _KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": _KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
    "SCMP_ACT_TRAP": _TRAP,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_LOG": _LOG,
    "SCMP_ACT_ALLOW": _ALLOW,
    "SCMP_ACT_NOTIFY": _NOTIFY,
}
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# libseccomp's name of each architecture of the spec
ARCHITECTURES = {
    "SCMP_ARCH_X86": "x86",
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_ARM": "arm",
    "SCMP_ARCH_AARCH64": "aarch64",
    "SCMP_ARCH_MIPS": "mips",
    "SCMP_ARCH_MIPS64": "mips64",
    "SCMP_ARCH_MIPS64N32": "mips64n32",
    "SCMP_ARCH_MIPSEL": "mipsel",
    "SCMP_ARCH_MIPSEL64": "mipsel64",
    "SCMP_ARCH_MIPSEL64N32": "mipsel64n32",
    "SCMP_ARCH_PPC": "ppc",
    "SCMP_ARCH_PPC64": "ppc64",
    "SCMP_ARCH_PPC64LE": "ppc64le",
    "SCMP_ARCH_S390": "s390",
    "SCMP_ARCH_S390X": "s390x",
    "SCMP_ARCH_PARISC": "parisc",
    "SCMP_ARCH_PARISC64": "parisc64",
    "SCMP_ARCH_RISCV64": "riscv64",
    "SCMP_ARCH_LOONGARCH64": "loongarch64",
}
# seccomp(2) flags by the spec's names
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
_WHERE = "linux.seccomp."
_TSYNC, _NEW_LISTENER, _TSYNC_ESRCH, _WAIT_KILLABLE = 1, 8, 16, 32

_ATTRIBUTE_NNP, _ATTRIBUTE_OPTIMIZE = 3, 8
_SET_MODE_FILTER = 1
_SYSCALL = {
    "x86_64": 317,
    "i686": 354,
    "aarch64": 277,
    "riscv64": 277,
    "loongarch64": 277,
    "armv7l": 383,
    "ppc64le": 358,
    "s390x": 348,
}.get(os.uname().machine)

_libc = ctypes.CDLL(None, use_errno=True)
_programs: dict[str, bytes] = {}


class _ArgumentTest(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def compile_filter(seccomp_spec: Mapping[str, Any], cache_dir: str | None = None) -> bytes:
    """The BPF program (array of `struct sock_filter`, native byte order) for an OCI `linux.seccomp` object.

    As runc does: system calls that libseccomp does not know are skipped, and those with a higher number than
    any in the profile get ENOSYS, so that programs fall back to what they did before the call existed.
    Programs are kept in memory by profile and, when `cache_dir` (a folder of root's) is given, there too,
    across processes; b"" when the object asks for nothing.

    InvalidArgument for a malformed profile, FailedPrecondition without libseccomp.
    """
    filter_spec = {name: value for name, value in seccomp_spec.items() if not name.startswith("listener")}
    key = render(filter_spec, sort=True, compact=True)
    program = _programs.get(key)
    if program is None:
        stored = _stored_path(cache_dir, key) if cache_dir else None
        program = _read_stored(stored) if stored else None
        if program is None:
            program = _compile(seccomp_spec)
            if stored and program:
                _store(stored, program)
        _programs[key] = program
    return program


def notifies(seccomp_spec: Mapping[str, Any]) -> bool:
    """Whether a `linux.seccomp` object needs a listener: it has an action SCMP_ACT_NOTIFY.

    InvalidArgument where it names none, or has something for one without naming it.
    """
    path = seccomp_spec.get("listenerPath")
    metadata = seccomp_spec.get("listenerMetadata")
    for name, value in (("listenerPath", path), ("listenerMetadata", metadata)):
        if value is not None and not isinstance(value, str):
            raise InvalidArgument(f"linux.seccomp.{name} must be a string")
    if metadata and not path:
        raise InvalidArgument("linux.seccomp.listenerMetadata needs linux.seccomp.listenerPath")
    actions = [seccomp_spec.get("defaultAction")]
    actions += [call.get("action") for call in objects(seccomp_spec, "syscalls", _WHERE)]
    if "SCMP_ACT_NOTIFY" not in actions:
        return False
    if not path:
        raise InvalidArgument("linux.seccomp.listenerPath is not set, but SCMP_ACT_NOTIFY is used")
    return True


def check_flags(flags: Collection[str] | None) -> int:
    """The seccomp(2) flags for the spec's `flags`. None: speculation stays allowed, as runc's default is.

    InvalidArgument for an unknown flag.
    """
    if flags is None:
        return FLAGS["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    value = 0
    for flag in strings({"flags": flags}, "flags", _WHERE):
        if flag not in FLAGS:
            raise InvalidArgument(f"{_WHERE}flags: seccomp flag {flag} is not known")
        value |= FLAGS[flag]
    return value


def install(program: bytes, flags: Collection[str] | None = None) -> None:
    """Put `program` on the calling thread (with the TSYNC flag on all threads), for good. `flags` as in the
    spec.

    The caller needs CAP_SYS_ADMIN or no_new_privs. Loads nothing. Internal with the kernel's reason.
    """
    if not program:
        return
    value = check_flags(flags) & ~_WAIT_KILLABLE  # it says how a listener is waited for
    argument = _Program(len(program) // 8, program)
    result = _seccomp(value, argument)
    if result == -errno.EINVAL and flags is None:
        result = _seccomp(0, argument)  # SPEC_ALLOW is of Linux 4.17, and only our default asks for it
    if result > 0:
        result = -errno.ESRCH  # TSYNC: the thread of that id could not follow
    if result < 0:
        raise Internal(f"error loading seccomp filter: {os.strerror(-result)}")


def install_with_listener(program: bytes, flags: Collection[str] | None = None) -> int:
    """As `install`; the descriptor on which the kernel asks about the calls of SCMP_ACT_NOTIFY, which wait
    until somebody answers there (seccomp_unotify(2)). It is closed on exec.
    """
    value = check_flags(flags) | _NEW_LISTENER
    if value & _TSYNC:
        value |= _TSYNC_ESRCH  # the result is the descriptor, and so no thread's id
    result = _seccomp(value, _Program(len(program) // 8, program))
    if result < 0:
        raise Internal(f"error loading seccomp filter: {os.strerror(-result)}")
    return result


def supported_flags() -> list[str]:
    """Those of FLAGS that the running kernel knows: it looks at them before it reads a program."""
    if _SYSCALL is None:
        return []
    found = []
    for name, flag in FLAGS.items():
        asked = flag | _NEW_LISTENER if flag == _WAIT_KILLABLE else flag
        if _seccomp(asked, None) == -errno.EFAULT:
            found.append(name)
    return found


def _seccomp(flags: int, program: _Program | None) -> int:
    """seccomp(2); minus errno on an error."""
    if _SYSCALL is None:
        raise FailedPrecondition("seccomp is not known for this architecture")
    arguments = (ctypes.c_long(_SYSCALL), ctypes.c_ulong(_SET_MODE_FILTER), ctypes.c_ulong(flags))
    result = int(_libc.syscall(*arguments, ctypes.byref(program) if program is not None else None))
    return -ctypes.get_errno() if result < 0 else result


def library_version() -> str:
    """The version of libseccomp, as `2.5.4`; empty when it is not there."""
    try:
        return _Library().version_text()
    except FailedPrecondition:
        return ""


class _Library:
    """The functions of libseccomp that are used; FailedPrecondition when it is not there."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        except OSError as error:
            raise FailedPrecondition(f"seccomp needs libseccomp.so.2: {error}") from error
        pointer, integer, unsigned = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32
        for name, result, arguments in (
            ("seccomp_init", pointer, (unsigned,)),
            ("seccomp_release", None, (pointer,)),
            ("seccomp_arch_native", unsigned, ()),
            ("seccomp_arch_resolve_name", unsigned, (ctypes.c_char_p,)),
            ("seccomp_arch_add", integer, (pointer, unsigned)),
            ("seccomp_attr_set", integer, (pointer, integer, unsigned)),
            ("seccomp_syscall_resolve_name", integer, (ctypes.c_char_p,)),
            ("seccomp_syscall_resolve_name_arch", integer, (unsigned, ctypes.c_char_p)),
            ("seccomp_rule_add_array", integer, (pointer, unsigned, integer, ctypes.c_uint, pointer)),
            ("seccomp_export_bpf", integer, (pointer, integer)),
            ("seccomp_version", ctypes.POINTER(ctypes.c_uint), ()),
        ):
            function = library[name]
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("seccomp_"), function)

    def version_text(self) -> str:
        """As `2.5.4`."""
        return ".".join(map(str, self.version()[:3]))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _action(rule: Mapping[str, Any], name_field: str, errno_field: str, where: str) -> int:
    name, errno_ret = rule.get(name_field), rule.get(errno_field)
    if not isinstance(name, str) or name not in ACTIONS:
        raise InvalidArgument(f"{where}{name_field}: string {name} is not a valid action for seccomp")
    action = ACTIONS[name]
    if action not in (_ERRNO, _TRACE):
        if errno_ret is not None:
            raise InvalidArgument(f"{where}{errno_field}: seccomp action {name} takes no errnoRet")
        return action
    if errno_ret is None:
        return action | errno.EPERM
    if not isinstance(errno_ret, int) or not 0 <= errno_ret <= 0xFFFF:
        raise InvalidArgument(f"{where}{errno_field}: seccomp errnoRet {errno_ret!r} is not an error number")
    return action | errno_ret


def _tests(call: Mapping[str, Any]) -> list[_ArgumentTest]:
    tests, where = [], f"{_WHERE}syscalls.args."
    for argument in objects(call, "args", f"{_WHERE}syscalls."):
        operator = text(argument, "op", where)
        if operator not in OPERATORS:
            raise InvalidArgument(f"{where}op: string {operator} is not a valid operator for seccomp")
        index, value, second = argument.get("index", 0), argument.get("value", 0), argument.get("valueTwo", 0)
        if not isinstance(index, int) or not 0 <= index <= 5:
            raise InvalidArgument(f"{where}index: seccomp argument index {index!r} is not in 0 to 5")
        if not all(isinstance(number, int) and 0 <= number < 1 << 64 for number in (value, second)):
            raise InvalidArgument(
                f"{where}value, {where}valueTwo: seccomp argument values must be unsigned 64-bit numbers"
            )
        tests.append(_ArgumentTest(index, OPERATORS[operator], value, second))
    return tests


def _compile(spec: Mapping[str, Any]) -> bytes:
    names = strings(spec, "architectures", _WHERE)
    calls = objects(spec, "syscalls", _WHERE)
    if not spec.get("defaultAction") and not calls:
        return b""
    default = _action(spec, "defaultAction", "defaultErrnoRet", _WHERE)
    check_flags(spec.get("flags"))
    for name in names:
        if name not in ARCHITECTURES:
            raise InvalidArgument(f"{_WHERE}architectures: string {name} is not a valid arch for seccomp")
    rules = [rule for call in calls for rule in _rules(call)]

    library = _Library()
    architectures = {name: library.arch_resolve_name(ARCHITECTURES[name].encode()) for name in names}
    for name, token in architectures.items():
        if not token:
            raise FailedPrecondition(f"seccomp architecture {name} is not known to this libseccomp")
    context = library.init(default)
    if not context:
        raise Internal("error creating seccomp filter")
    try:
        for token in architectures.values():
            _expect(library.arch_add(context, token), "adding architecture", allowed=errno.EEXIST)
        if len(rules) > 32:
            # a binary tree of system calls instead of a list (libseccomp 2.5); with no rule at all it
            # misbehaves
            library.attr_set(context, _ATTRIBUTE_OPTIMIZE, 2)
        _expect(library.attr_set(context, _ATTRIBUTE_NNP, 0), "setting no new privileges")
        for name, action, tests in rules:
            if action == default:
                continue
            number = library.syscall_resolve_name(name.encode())
            if number != -1:  # else: a call that this libseccomp has never heard of
                _add_rule(library, context, name, action, number, tests)
        program = _export(library, context)
    finally:
        library.release(context)
    if default in (_ALLOW, _LOG, _NOTIFY) or default & 0x7FFF0000 == _TRACE:
        return program  # what lets all unknown calls through needs no answer for them
    return prepend_enosys_stub(program, _largest_numbers(library, architectures.values(), rules))


def _rules(call: Mapping[str, Any]) -> list[tuple[str, int, list[_ArgumentTest]]]:
    action, tests = _action(call, "action", "errnoRet", f"{_WHERE}syscalls."), _tests(call)
    names = strings(call, "names", f"{_WHERE}syscalls.")
    if not names:
        raise InvalidArgument("linux.seccomp.syscalls.names must hold the name of a system call")
    rules = []
    for name in names:
        if not name:
            raise InvalidArgument(f"{_WHERE}syscalls.names: empty string is not a valid syscall")
        rules.append((name, action, tests))
    return rules


def _add_rule(
    library: _Library, context: int, name: str, action: int, number: int, tests: list[_ArgumentTest]
) -> None:
    indexes = [test.arg for test in tests]
    # libseccomp takes one test per argument in a rule; several on one argument become rules of their own, any
    # of which may hold (the old meaning, which runc has kept)
    groups = [tests] if len(set(indexes)) == len(indexes) else [[test] for test in tests]
    for group in groups:
        array = (_ArgumentTest * len(group))(*group)
        result = library.rule_add_array(context, action, number, len(group), array if group else None)
        _expect(result, f"adding seccomp rule for syscall {name}", allowed=errno.EEXIST)


def _expect(result: int, what: str, allowed: int = 0) -> None:
    if result < 0 and -result != allowed:
        raise InvalidArgument(f"error {what}: {os.strerror(-result)}")


def _export(library: _Library, context: int) -> bytes:
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _expect(library.export_bpf(context, descriptor), "exporting seccomp filter")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _largest_numbers(
    library: _Library, tokens: Collection[int], rules: list[tuple[str, int, list[_ArgumentTest]]]
) -> dict[int, int]:
    """By libseccomp's architecture token: the highest call number that the profile names."""
    names = {name.encode() for name, _, _ in rules}
    largest: dict[int, int] = {}
    for token in {*tokens, library.arch_native()}:
        highest = max((library.syscall_resolve_name_arch(token, name) for name in names), default=0)
        if highest > 0:
            largest[token] = highest
    return largest


def _stored_path(cache_dir: str, key: str) -> str:
    # another libseccomp knows other calls, and another form of ours would be read wrong: both belong to the
    # key
    identity = f"1\0{os.uname().machine}\0{_Library().version_text()}\0{key}"
    return f"{cache_dir}/{blake2b(identity.encode(), digest_size=24).hexdigest()}.bpf"


def _read_stored(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stored:
            status = os.fstat(stored.fileno())
            program = stored.read()
    except OSError:
        return None
    # a cache that somebody else could write decides nothing
    if status.st_uid != os.geteuid() or status.st_mode & 0o022 or not program or len(program) % 8:
        return None
    return program


def _store(path: str, program: bytes) -> None:
    temporary = f"{path}.{os.getpid()}"
    with contexts.suppress(OSError):  # only a cache: a full disk costs time, not the container
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, program)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
