"""The Python that runs us, seen as something to protect: from being overwritten by a container, and from
loading a container's code.

CVE-2019-5736: a process that enters a container can be tricked into running itself there
(`#!/proc/self/exe`), and root in the container can then open /proc/<pid>/exe for writing and change the
host's binary. So a program that enters containers runs from a read-only bind mount of the interpreter, or,
where mounting is not allowed, from a sealed copy in memory.

This module is imported by programs that must start in a few milliseconds, so it loads no more than it must,
when it must.
"""

from __future__ import annotations

import errno
import os
import sys

_MARK = "_BUOY_INTERPRETER"
_PREFIX = "python-"
_ST_RDONLY = 1
# fcntl(2): F_ADD_SEALS, F_GET_SEALS; SEAL, SHRINK, GROW and WRITE
_ADD_SEALS, _GET_SEALS, _SEALS = 1033, 1034, 0xF
_SEAL_TRIES = 5  # the kernel waits 150 ms in each
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 0x10
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, 0o2000000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_MNT_DETACH = 2
_OTHERS_WRITE, _STICKY = 0o022, 0o1000  # inode(7)
_SHEBANG_LIMIT = 255
# Of runc-bin, what engines call for each container.
_QUICK_VERBS = ("create", "delete", "exec", "kill", "run", "start", "state")
# Interpreters that find their library whatever they are called; others look beside their own file.
_FIXED_PREFIXES = ("/usr", "/usr/local")
# To Python this is a string. sh takes the mount that shows the very file of the interpreter, unless somebody
# else owns a folder on the way and could put another file there meanwhile; and Python looks once more whether
# it is read-only.
_PROTECTED_HEAD = """\
#!/bin/sh
''':'
mounts={mounts}
take=
for word in "$@"; do
    case $take,$word in
        root,*) mounts=$word/@python take= ;;
        value,*) take= ;;
        *,--root | *,-root) take=root ;;
        *,--root=* | *,-root=*) mounts=${{word#*=}}/@python ;;
        *,--log | *,-log | *,--log-format | *,-log-format) take=value ;;
        *,--criu | *,-criu | *,--rootless | *,-rootless) take=value ;;
        *,-*) ;;
        *) break ;;
    esac
done
case $mounts in
    /var/run/*) [ /var/run -ef /run ] && mounts=/run/${{mounts#/var/run/}} ;;
esac
ours() {{
    case $1 in /*) at=$1 ;; *) return 1 ;; esac
    while [ -O "$at" ] && [ ! -h "$at" ]; do
        [ "$at" = / ] && return 0
        at=${{at%/*}} at=${{at:-/}}
    done
    return 1
}}
for file in "$mounts"/python-*; do
    [ "$file" -ef {python} ] && ours "$mounts" && {mark}=${{0##*/}} exec "$file" -IS "$0" "$@"
done
exec {python} -IS "$0" "$@"
'''
"""


def protected() -> bool:
    """Whether nobody who reaches our interpreter's file through /proc/<pid>/exe can change it."""
    if os.statvfs("/proc/self/exe").f_flag & _ST_RDONLY:
        return True
    import fcntl

    descriptor = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(descriptor, _GET_SEALS) & _SEALS == _SEALS
    except OSError:  # only files in memory have seals
        return False
    finally:
        os.close(descriptor)


def protect_self(run_dir: str) -> None:
    """Go on as the same program on a protected interpreter; returns at once when it is.

    Does not return otherwise: the process executes itself anew with the same arguments and environment, and
    gets here again. To be called first thing in `main`, before anything that a second run would repeat.
    `run_dir`: a folder of root's, where the bind mount of the interpreter is made once and kept for all later
    calls; an ordinary user has no use for it.

    OSError when neither a mount nor a copy in memory could be executed.
    """
    mark = os.environ.pop(_MARK, None)
    if protected():
        if mark:
            _restore_name(mark)
        return
    if mark is not None:
        raise OSError("the interpreter was executed anew, and still is not protected")
    # Python finds its home by the name that it is called by, not by the file that is executed: a venv stays a
    # venv
    arguments = [sys.executable or sys.orig_argv[0], *sys.orig_argv[1:]]
    environment = {**os.environ, _MARK: _name()}
    path = _mounted(run_dir) if os.geteuid() == 0 and _only_roots(run_dir) else None
    if path is not None:
        os.execve(path, arguments, environment)
    os.execve(_copy_in_memory(), arguments, environment)


def remove_mounts(run_dir: str, keep: str = "") -> None:
    """Take back what `protect_self` left in `run_dir`, but for the file `keep`.

    Programs that run from it go on.
    """
    import contextlib

    from . import syscalls

    for name in os.listdir(run_dir):
        if name.startswith(_PREFIX) and name != keep:
            # lazily: programs on it go on
            with contextlib.suppress(OSError):
                syscalls.umount2(f"{run_dir}/{name}", _MNT_DETACH)
            with contextlib.suppress(OSError):
                os.unlink(f"{run_dir}/{name}")


def seal(*, dumpable: bool = False) -> None:
    """From here on nothing is loaded: no import, from no path. To be called before the first step into a
    container.

    Modules that are loaded stay usable; importing any other raises ImportError, and a codec that was never
    used LookupError. The process is made non-dumpable, so that the container's processes cannot look into it
    through /proc; `dumpable` leaves that step to the caller. Tracebacks no longer read source files, since
    their paths would now be looked up in the container.
    """
    from .syscalls import PR_SET_DUMPABLE, prctl

    if not dumpable:
        prctl(PR_SET_DUMPABLE, 0)
    sys.tracebacklimit = 0
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [_Sealed]


class _Sealed:
    """The only finder of a sealed interpreter.

    An empty list of finders would do, but for a warning that loads modules.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        raise ImportError(f"import of {name} after the interpreter was sealed", name=name)


def launcher_script(python: str, paths: list[str], module: str, store: str = "", mounts: str = "") -> str:
    """The text of a command that runs `module`'s `main()` and exits with its result, as fast as Python
    starts.

    `python` (absolute) is started with -I and -S: no environment, no site module, which costs more than all
    else; `paths` (folders) are put before the standard library instead. pip's wrappers take twice as long.
    `store`: the file with the modules of a short command (`linux.module_store`). `mounts`: where the
    command's `protect_self` keeps its mount when the command line has no --root, else it is `@python` below
    that; a mount that is there is started at once, which saves the start of an interpreter only to start
    another.
    """
    quoted = "'" + python.replace("'", "'\\''") + "'"
    head = f"#!{python} -IS\n"
    if mounts and sys.base_prefix in _FIXED_PREFIXES:
        head = _PROTECTED_HEAD.format(python=quoted, mounts=mounts, mark=_MARK)
    elif len(head) > _SHEBANG_LIMIT or " " in python:
        # the kernel cuts long first lines and splits at blanks; this line is a comment to Python and a
        # command to sh
        head = f"#!/bin/sh\n'''exec' {quoted} -IS \"$0\" \"$@\"\n' '''\n"
    lines = f"{head}import sys\n\nsys.path[:0] = {list(paths)!r}\n"
    if not store:
        return f"{lines}from {module} import main\n\nsys.exit(main())\n"
    from linux.module_store_writer import start_lines

    # The collector goes first: it would run dozens of times while modules are loaded. At the end nothing is
    # torn down: the kernel does it in no time.
    return (
        f"{lines}import gc\n\ngc.disable()\n{start_lines(store)}from {module} import main\n\n"
        "code = main()\nfor stream in (sys.stdout, sys.stderr):\n    if stream:\n        stream.flush()\n"
        "import os\n\nos._exit(code)\n"
    )


def write_launchers(bin_dir: str) -> list[str]:
    """Write the quick commands into `bin_dir` (a venv's, with its `python`), in place of pip's wrappers.

    Their paths.
    """
    from . import module_store_writer

    services = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    packages = _site_packages(bin_dir)
    paths = [services, *(path for path in packages if path != services)]
    python = os.path.join(bin_dir, "python")
    store = os.path.join(os.path.dirname(bin_dir), "lib", f"runc-bin.{sys.implementation.cache_tag}.modules")
    warm = f"import runc_bin; runc_bin.load_verbs{_QUICK_VERBS!r}"
    groups = {verb: f"import runc_bin; runc_bin.load_verb({verb!r})" for verb in _QUICK_VERBS}
    module_store_writer.write(store, python, paths, warm, groups)
    written = []
    for command, text in (
        ("runc-bin", launcher_script(python, paths, "runc_bin.__main__", store, "/run/buoy-runc/@python")),
        ("shim-svc", launcher_script(python, paths, "shim_svc.__main__")),
    ):
        path = os.path.join(bin_dir, command)
        temporary = f"{path}.new"
        with open(temporary, "w", encoding="utf-8") as script:
            script.write(text)
            os.fchmod(script.fileno(), 0o755)
        os.rename(temporary, path)
        written.append(path)
    return written


def _site_packages(bin_dir: str) -> list[str]:
    import sysconfig

    base = os.path.dirname(bin_dir)
    names = ("purelib", "platlib")
    found = [sysconfig.get_path(name, "venv", vars={"base": base, "platbase": base}) for name in names]
    return list(dict.fromkeys(found))


def _name() -> str:
    with open("/proc/self/comm", encoding="utf-8", errors="surrogateescape") as comm:
        return comm.read().rstrip("\n")


def _restore_name(name: str) -> None:
    """The kernel has named the process after the executed file; give it back the command's name."""
    with open("/proc/self/comm", "w", encoding="utf-8", errors="surrogateescape") as comm:
        comm.write(name)


def _is_mounted(path: str, source: os.stat_result) -> bool:
    """Whether `path` shows the file `source` on a read-only mount."""
    try:
        status = os.stat(path)
        flags = os.statvfs(path).f_flag
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (source.st_dev, source.st_ino) and bool(flags & _ST_RDONLY)


def _mounted(run_dir: str) -> str | None:
    """The path of the interpreter's read-only bind mount in `run_dir`, made when missing.

    None where mounting is not allowed.
    """
    source = os.stat("/proc/self/exe")
    # another file (after an update of Python) is another mount; programs on the old one keep it
    name = f"{_PREFIX}{source.st_dev:x}-{source.st_ino:x}-{source.st_mtime_ns:x}"
    path = f"{run_dir}/{name}"
    if _is_mounted(path, source):
        return path
    import fcntl

    try:
        os.makedirs(run_dir, 0o700, exist_ok=True)
        folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # root of a user namespace only
        return None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of several callers one mounts, the others find it
        if _is_mounted(path, source):
            return path
        if not _mount(path):
            return None
        remove_mounts(run_dir, keep=name)
        return path
    finally:
        os.close(folder)


def _only_roots(folder: str) -> bool:
    """Whether nobody but root can put something else in the place of a folder, or of one above it."""
    folder = os.path.realpath(folder)
    while True:
        try:
            status = os.stat(folder)
            open_to_others = status.st_mode & _OTHERS_WRITE and not status.st_mode & _STICKY
            if status.st_uid != 0 or open_to_others:
                return False
        except FileNotFoundError:
            pass
        if folder in ("/", ""):
            return True
        folder = os.path.dirname(folder)


def _mount(path: str) -> bool:
    from . import syscalls

    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    try:
        # a detached copy of the mount is made read-only first: nobody ever sees it writable
        tree = syscalls.open_tree(syscalls.AT_FDCWD, "/proc/self/exe", _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
        try:
            attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
            syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, set_=attributes)
            syscalls.move_mount(tree, "", syscalls.AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)
    except OSError:  # no privilege, an old kernel, a file system that cannot: the copy in memory is left
        os.unlink(path)
        return False
    return True


def _copy_in_memory() -> int:
    """A descriptor of a copy of the interpreter that nobody can change any more.

    (memfd_create(2), fcntl(2) F_ADD_SEALS).
    """
    import fcntl

    flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    try:
        copy = os.memfd_create("python", flags | _MFD_EXEC)
    except OSError:  # the flag is of Linux 6.3; before, copies may be executed without it
        copy = os.memfd_create("python", flags)
    source = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        left = os.fstat(source).st_size
        while left:
            count = os.sendfile(copy, source, None, left)
            if not count:
                break
            left -= count
    finally:
        os.close(source)
    os.fchmod(copy, 0o755)
    for tries_left in reversed(range(_SEAL_TRIES)):
        try:
            fcntl.fcntl(copy, _ADD_SEALS, _SEALS)
            break
        except OSError as error:
            # Somebody holds a page of it for a moment, as the kernel's own scans do (fcntl(2) F_SEAL_WRITE).
            if error.errno != errno.EBUSY or not tries_left:
                raise
    return copy


def _command(arguments: list[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "--write-launchers":
        for path in write_launchers(os.path.abspath(arguments[1])):
            print(path)
        return 0
    print("usage: python -m linux.interpreter --write-launchers BIN_DIR", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(_command(sys.argv[1:]))
