"""Who the process is at its exec: limits, groups, user, capabilities, working directory, program."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence

from errdefs import Internal, InvalidArgument, NotFound
from linux import signals, syscalls

from runc_bin.libcontainer import capabilities, devices
from runc_bin.libcontainer.failures import step
from runc_bin.libcontainer.process_spec import Process, Rlimit

_CAP_SETGID = 6


def set_rlimits(limits: Iterable[Rlimit]) -> None:
    """setrlimit(2) of this process for each."""
    for limit in limits:
        try:
            syscalls.prlimit(0, limit.number, (limit.soft, limit.hard))
        except PermissionError as error:
            raise _not_permitted(limit) from error
        except OSError as error:
            raise InvalidArgument(f"error setting rlimit {limit.name}: invalid argument") from error


def raise_limits(pid: int, limits: Iterable[Rlimit]) -> None:
    """Lift those hard limits of a process (0: this one) that are below what is wanted; nothing else changes.

    For a process on its way into a user namespace, where nobody may.
    """
    for limit in limits:
        soft, hard = syscalls.prlimit(pid, limit.number)
        if limit.hard > hard:
            try:
                syscalls.prlimit(pid, limit.number, (soft, limit.hard))
            except PermissionError as error:
                raise _not_permitted(limit) from error


def _not_permitted(limit: Rlimit) -> Internal:
    return Internal(f"error setting rlimit type {limit.number}: operation not permitted")


def set_oom_score(score: int | None, pid: int | None = None) -> None:
    """Write the oom_score_adj of a process, None being this one.

    Unless it is that already: lowering it wants CAP_SYS_RESOURCE.
    """
    if score is None:
        return
    path = f"/proc/{pid or 'self'}/oom_score_adj"
    with step(f"failed to update {path}"), open(path, "r+") as file:
        if int(file.read()) != score:
            file.seek(0)
            file.write(str(score))


def become_root() -> None:
    """Become the root of the user namespace; what a change of user clears is set again."""
    with step("failed to become root in user namespace"):
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signals.SIGKILL)


def enter_directory(cwd: str) -> bool:
    """Go to the working directory; False when that is forbidden, so that `become` is to try it as the user.

    It must lie in the container: a descriptor that leads out of it would make it a way to the host
    (CVE-2024-21626). A filter may forbid getcwd(2), so this comes before one is loaded.
    """
    try:
        os.chdir(cwd)
    except PermissionError:
        return False
    except OSError as error:
        text = os.strerror(error.errno or 0).lower()
        raise InvalidArgument(f'chdir to cwd ("{cwd}") set in config.json failed: {text}') from None
    _check_directory()
    return True


def become(process: Process, *, entered: bool) -> None:
    """Take the groups, the user and the capabilities of the spec, and the working directory unless it was
    `entered`.
    """
    with step("unable to apply bounding set"):
        capabilities.drop_bounding(process.capabilities.bounding)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    with step("unable to setup user"):
        _own_streams(process.uid)
        _set_groups(process.additional_gids)
        os.setgid(process.gid)
        os.setuid(process.uid)
    if not entered:
        with step(f'chdir to cwd ("{process.cwd}") set in config.json failed'):
            os.chdir(process.cwd)
        _check_directory()
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
    with step("unable to apply caps"):
        capabilities.apply(process.capabilities)


def _check_directory() -> None:
    try:
        inside = os.getcwd().startswith("/")
    except FileNotFoundError:
        inside = False
    if not inside:
        raise InvalidArgument(
            "current working directory is outside of container mount namespace root"
            " -- possible container breakout detected"
        )


def drop_groups() -> None:
    """Leave all groups of the caller's on the way into a user namespace that may forbid it from then on."""
    if os.geteuid() == 0:
        os.setgroups(())


def _set_groups(groups: Sequence[int]) -> None:
    """setgroups(2). A user namespace that an ordinary user has made may forbid it for good, and then the
    groups that the user has outside stay, as nobody's; none can be asked for.
    """
    try:
        os.setgroups(groups)
    except PermissionError:
        if not syscalls.capget()[0] >> _CAP_SETGID & 1:
            raise
        if groups:
            raise InvalidArgument("cannot set any additional groups in a rootless container") from None


def _own_streams(uid: int) -> None:
    """Give the standard streams to the user, who could otherwise not open /dev/stdout again."""
    for fd in range(3):
        info = os.fstat(fd)
        if info.st_uid == uid or devices.is_null(fd):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENOSYS):
                raise


def own_pipes(uid: int) -> None:
    """Give the standard streams that are pipes to a user, who could else not open /dev/stdout again.

    It is done outside: the streams' present owner is nobody in the container. Only pipes: a terminal or a
    file that we were given is somebody else's.
    """
    for fd in range(3):
        info = os.fstat(fd)
        if stat.S_ISFIFO(info.st_mode) and info.st_uid != uid:
            try:
                os.fchown(fd, uid, -1)
            except OSError:
                continue


def find_program(name: str, env: Sequence[str]) -> str:
    """The path that `name` means with the PATH of `env`, in the words of Go's exec.LookPath."""
    if "/" in name:
        _check_program(name, name)
        return name
    path = next((item[5:] for item in reversed(env) if item.startswith("PATH=")), "")
    for directory in path.split(":"):
        candidate = os.path.join(directory or ".", name)
        try:
            _check_program(candidate, name)
        except (NotFound, InvalidArgument):
            continue
        if not candidate.startswith("/"):
            raise InvalidArgument(
                f'exec: "{name}": cannot run executable found relative to current directory'
            )
        return candidate
    raise NotFound(f'exec: "{name}": executable file not found in $PATH')


def _check_program(path: str, name: str) -> None:
    try:
        info = os.stat(path)
    except OSError as error:
        text = os.strerror(error.errno or 0).lower()
        raise NotFound(f'exec: "{name}": stat {path}: {text}') from None
    if stat.S_ISDIR(info.st_mode):
        raise InvalidArgument(f'exec: "{name}": is a directory')
    try:
        syscalls.check_access(path, os.X_OK)
    except OSError as error:
        # A filter that does not know faccessat2(2) answers EPERM: the mode decides, and the exec at last.
        if error.errno == errno.EPERM and info.st_mode & 0o111:
            return
        text = os.strerror(error.errno or 0).lower()
        raise InvalidArgument(f'exec: "{name}": {text}') from None


def environment(process: Process) -> dict[str, str]:
    """The environment of the program: the last of doubled names wins, HOME is that of /etc/passwd when
    missing.
    """
    env: dict[str, str] = {}
    for item in process.env:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise InvalidArgument(f"invalid environment variable: {item!r}")
        env[key] = value
    if not env.get("HOME"):
        env["HOME"] = _home(process.uid)
    return env


def _home(uid: int) -> str:
    """The home folder that the container's /etc/passwd gives a user; `/` without one. No NSS: plain text
    only.
    """
    try:
        # The file is the image's: a fifo must not block us, and nothing but a plain file is read.
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return "/"
    try:
        lines = os.read(fd, 1 << 20).split(b"\n") if stat.S_ISREG(os.fstat(fd).st_mode) else []
    finally:
        os.close(fd)
    for line in lines:
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == str(uid).encode():
            return os.fsdecode(fields[5]) or "/"
    return "/"
