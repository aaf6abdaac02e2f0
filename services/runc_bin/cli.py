"""The command line: a table of verbs and their flags, and a parser for Go's way of writing them.

`--flag value`, `--flag=value` and one dash are the same; a bool takes a value only with `=`; flags come
before the arguments, the global ones before the verb. No argparse: its import alone costs more than a whole
`state`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from errdefs import InvalidArgument

from runc_bin.record import Record

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")

Value = bool | str | int | list[str] | None


class Flag(Record):
    """One flag; `kind` is bool, str, int or list (may be given again and again)."""

    name: str
    kind: type
    short: str = ""
    default: str = ""
    help: str = ""


class Verb(Record):
    """One command. The module of `commands` with its name has `run(context) -> exit code`; `stop` counts
    the arguments after which everything is an argument (None: flags may stand between arguments too).
    """

    name: str
    help: str
    least: int
    most: int | None
    flags: Sequence[Flag] = ()
    module: str = ""
    arguments: str = "<container-id>"
    stop: int | None = None


class Context(Record):
    """A parsed command line."""

    verb: Verb
    globals: Mapping[str, Any]
    flags: Mapping[str, Any]
    args: list[str]

    def text(self, name: str) -> str:
        """A str flag; empty when it was not given."""
        value: str = self.flags[name]
        return value

    def number(self, name: str) -> int:
        """An int flag; 0 when it was not given."""
        value: int = self.flags[name]
        return value

    def given(self, name: str) -> bool:
        """A bool flag; False when it was not given."""
        return bool(self.flags[name])

    def said(self, name: str) -> bool | None:
        """A bool flag; None when it was not given."""
        value: bool | None = self.flags[name]
        return value

    def texts(self, name: str) -> list[str]:
        """A list flag."""
        value: list[str] = self.flags[name]
        return value

    @property
    def systemd_cgroup(self) -> bool:
        """Whether control groups are units of systemd."""
        return bool(self.globals["systemd-cgroup"])

    @property
    def root(self) -> str:
        """The folder of the containers' records."""
        root: str = self.globals["root"]
        return root

    @property
    def rootless(self) -> bool | None:
        """Whether control groups may be done without; None: when the caller has no power over the host."""
        word: str = self.globals["rootless"]
        return None if word in ("", "auto") else bool(_convert(Flag("rootless", bool), word))


DEFAULT_ROOT = "/run/buoy-runc"


def default_root() -> str:
    """Where records are without --root: the host's root has a folder of its own, anybody else one below
    $XDG_RUNTIME_DIR.
    """
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0:
        if not folder or os.environ.get("USER") == "root":
            return DEFAULT_ROOT
        from runc_bin.libcontainer.cgroups.hierarchy import no_power

        if not no_power():
            return DEFAULT_ROOT
    return os.path.join(folder or f"/run/user/{os.geteuid()}", os.path.basename(DEFAULT_ROOT))


GLOBAL_FLAGS = (
    Flag("debug", bool, help="log more"),
    Flag("log", str, help="file for the log (default: standard error)"),
    Flag("log-format", str, default="text", help="'text' or 'json'"),
    Flag("root", str, help=f"folder of the containers' records (default: {DEFAULT_ROOT} or the user's)"),
    Flag("criu", str, default="criu", help="program for checkpoint and restore"),
    Flag("systemd-cgroup", bool, help="make cgroups as units of systemd; cgroupsPath is slice:prefix:name"),
    Flag("rootless", str, default="auto", help="'true', 'false' or 'auto'"),
    Flag("help", bool, "h", help="show help"),
    Flag("version", bool, "v", help="print the version"),
)

_PROCESS_FLAGS = (
    Flag("console-socket", str, help="Unix socket that gets the master of the terminal"),
    Flag("pidfd-socket", str, help="Unix socket that gets a descriptor of the process"),
    Flag("pid-file", str, help="file to write the process's pid to"),
    Flag("preserve-fds", int, help="number of further descriptors to pass on"),
)
_CREATE_FLAGS = (
    Flag("bundle", str, "b", help="the bundle's folder (default: the current one)"),
    *_PROCESS_FLAGS,
    Flag("no-pivot", bool, help="do not use pivot_root (a root on the initial ramdisk)"),
    Flag("no-new-keyring", bool, help="keep the caller's session keyring"),
)

_CHECKPOINT_FLAGS = (
    Flag("image-path", str, help="folder of the images (default: checkpoint)"),
    Flag("work-path", str, help="folder of CRIU's log and statistics (default: that of the images)"),
    Flag("tcp-established", bool, help="allow open TCP connections"),
    Flag("ext-unix-sk", bool, help="allow Unix sockets to the outside"),
    Flag("shell-job", bool, help="allow a terminal that is not the container's own"),
    Flag("lazy-pages", bool, help="bring pages of memory over on demand"),
    Flag("file-locks", bool, help="take file locks along"),
    Flag(
        "manage-cgroups-mode", str, help="'soft', 'full', 'strict' or 'ignore' (default: soft, ignore on v2)"
    ),
    Flag("empty-ns", list, help="make a namespace of this kind, but not what is in it (network)"),
    Flag("auto-dedup", bool, help="free pages of former images that later ones have too"),
)

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("create", "make a container", 1, 1, _CREATE_FLAGS),
        Verb(
            "run",
            "make and start a container",
            1,
            1,
            (
                *_CREATE_FLAGS,
                Flag("detach", bool, "d", help="do not wait for the container's end"),
                Flag("keep", bool, help="do not delete the container after its end"),
                Flag("no-subreaper", bool, help="do not adopt orphans while waiting"),
            ),
        ),
        Verb("start", "run the program of a created container", 1, 1),
        Verb("state", "print a container's state", 1, 1),
        Verb(
            "kill",
            "send a signal to a container's init (default: SIGTERM)",
            1,
            2,
            (Flag("all", bool, "a", help="to every process of the container"),),
            arguments="<container-id> [signal]",
            stop=1,
        ),
        Verb(
            "delete",
            "remove what a container holds",
            1,
            1,
            (Flag("force", bool, "f", help="kill it first if it runs"),),
        ),
        Verb(
            "exec",
            "run a further process in a container",
            1,
            None,
            (
                *_PROCESS_FLAGS,
                Flag("process", str, "p", help="file with the process as JSON"),
                Flag("detach", bool, "d", help="do not wait for the process's end"),
                Flag("tty", bool, "t", help="give it a terminal"),
                Flag("user", str, "u", help="<uid>[:<gid>]"),
                Flag("additional-gids", list, "g", help="further groups"),
                Flag("cwd", str, help="working directory"),
                Flag("env", list, "e", help="NAME=value, added to the environment"),
                Flag("cap", list, "c", help="capability to add"),
                Flag("apparmor", str, help="AppArmor profile"),
                Flag("process-label", str, help="SELinux label"),
                Flag("no-new-privs", bool, help="set no_new_privs"),
                Flag("cgroup", list, help="run in a cgroup below the container's: [controllers:]path"),
                Flag("ignore-paused", bool, help="allow a paused container"),
            ),
            module="exec_",
            arguments="<container-id> <command> [argument...]",
            stop=1,
        ),
        Verb("pause", "freeze all processes of a container", 1, 1),
        Verb("resume", "let a paused container go on", 1, 1),
        Verb(
            "list",
            "list the containers of the root",
            0,
            0,
            (
                Flag("format", str, "f", default="table", help="'table' or 'json'"),
                Flag("quiet", bool, "q", help="ids only"),
            ),
            module="list_",
            arguments="",
        ),
        Verb(
            "ps",
            "list the processes of a container",
            1,
            None,
            (Flag("format", str, "f", default="table", help="'table' or 'json'"),),
            arguments="<container-id> [ps options]",
            stop=1,
        ),
        Verb(
            "spec",
            "write a config.json to start from",
            0,
            0,
            (
                Flag("bundle", str, "b", help="the folder to write it in"),
                Flag("rootless", bool, help="for an ordinary user"),
            ),
            arguments="",
        ),
        Verb(
            "update",
            "change the limits of a container",
            1,
            1,
            (
                Flag("resources", str, "r", help="file with linux.resources as JSON, - for standard input"),
                Flag("cpu-period", str, help="CPU period in microseconds"),
                Flag("cpu-quota", str, help="CPU time in microseconds that a period allows"),
                Flag("cpu-burst", str, help="unused CPU time in microseconds that may be saved up"),
                Flag("cpu-share", str, help="CPU shares (2 to 262144)"),
                Flag("cpu-rt-period", str, help="period of real-time scheduling in microseconds"),
                Flag("cpu-rt-runtime", str, help="real-time CPU time in microseconds that a period allows"),
                Flag("cpu-idle", str, help="1: run only when nothing else wants to, 0: as usual"),
                Flag("cpuset-cpus", str, help="CPUs to use, as 0-2,4"),
                Flag("cpuset-mems", str, help="memory nodes to use"),
                Flag("memory", str, help="memory limit (-1: none)"),
                Flag("memory-reservation", str, help="memory reservation"),
                Flag("memory-swap", str, help="limit of memory and swap together (-1: none)"),
                Flag("kernel-memory", str, help="ignored: kernels have no such limit any more"),
                Flag("kernel-memory-tcp", str, help="ignored: kernels have no such limit any more"),
                Flag("pids-limit", str, help="largest number of processes (-1: no limit)"),
                Flag("blkio-weight", str, help="weight of block I/O (10 to 1000)"),
                Flag("l3-cache-schema", str, help="Intel RDT cache schema (the host must have it)"),
                Flag("mem-bw-schema", str, help="Intel RDT memory bandwidth schema (the host must have it)"),
            ),
        ),
        Verb(
            "events",
            "print a container's usage and out-of-memory events, as JSON lines",
            1,
            1,
            (
                Flag("interval", str, default="5s", help="time between two lines of usage"),
                Flag("stats", bool, help="print usage once"),
            ),
        ),
        Verb(
            "checkpoint",
            "write a running container's processes to a folder of images, by CRIU",
            1,
            1,
            (
                *_CHECKPOINT_FLAGS,
                Flag("parent-path", str, help="images of a former --pre-dump, relative to --image-path"),
                Flag("leave-running", bool, help="let the container run on"),
                Flag("tcp-skip-in-flight", bool, help="leave out connections in the making"),
                Flag("link-remap", bool, help="allow files that are open and have no name any more"),
                Flag("status-fd", int, default="-1", help="gets a zero byte once pages can be fetched"),
                Flag("page-server", str, help="ADDRESS:PORT of who takes the pages"),
                Flag("pre-dump", bool, help="write memory only, and let the container run on"),
            ),
        ),
        Verb(
            "restore",
            "make a container of the images of a checkpoint, and run it",
            1,
            1,
            (
                *_CHECKPOINT_FLAGS,
                Flag("bundle", str, "b", help="the bundle's folder (default: the current one)"),
                Flag("console-socket", str, help="Unix socket that gets the master of the terminal"),
                Flag("pid-file", str, help="file to write the process's pid to"),
                Flag("detach", bool, "d", help="do not wait for the container's end"),
                Flag("no-subreaper", bool, help="do not adopt orphans while waiting"),
                Flag("no-pivot", bool, help="refused: CRIU restores with pivot_root only"),
                Flag("lsm-profile", str, help="TYPE:NAME of the security module's profile to restore with"),
                Flag("lsm-mount-context", str, help="SELinux label to mount with"),
            ),
        ),
        Verb("features", "print what is supported, as JSON", 0, 0, arguments=""),
    )
}


def _convert(flag: Flag, raw: str) -> Value:
    if flag.kind is int:
        try:
            return int(raw, 0)
        except ValueError:
            raise InvalidArgument(f'invalid value "{raw}" for flag -{flag.name}') from None
    if flag.kind is bool:
        if raw in _TRUE:
            return True
        if raw in _FALSE:
            return False
        raise InvalidArgument(f'invalid boolean value "{raw}" for -{flag.name}')
    return raw


def _default(flag: Flag) -> Value:
    if flag.kind is bool:
        return None
    if flag.kind is int:
        return int(flag.default or 0)
    if flag.kind is list:
        return []
    return flag.default


def parse_flags(
    flags: Sequence[Flag], words: Sequence[str], stop: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Split `words` into flags and arguments. After `stop` arguments everything is an argument; so is all
    after `--`.
    """
    known = {name: flag for flag in flags for name in (flag.name, flag.short) if name}
    values: dict[str, Any] = {flag.name: _default(flag) for flag in flags}
    args: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if stop is not None and len(args) >= stop:
            args.append(word)
            continue
        if word == "--":
            args.extend(words[index:])
            break
        if not word.startswith("-") or word == "-":
            args.append(word)
            continue
        name, equals, raw = word.lstrip("-").partition("=")
        flag = known.get(name)
        if flag is None:
            raise InvalidArgument(f"flag provided but not defined: -{name}")
        if flag.kind is bool:
            values[flag.name] = _convert(flag, raw) if equals else True
            continue
        if not equals:
            if index >= len(words):
                raise InvalidArgument(f"flag needs an argument: -{name}")
            raw = words[index]
            index += 1
        if flag.kind is list:
            values[flag.name].append(raw)
        else:
            values[flag.name] = _convert(flag, raw)
    return values, args


def split(words: Sequence[str]) -> tuple[dict[str, Any], str, list[str]]:
    """(global flags, verb, the rest) of a command line; the verb is empty when there is none."""
    values, args = parse_flags(GLOBAL_FLAGS, words, 1)
    return (values, args[0], args[1:]) if args else (values, "", [])


def parse_verb(name: str, rest: Sequence[str], globals_: Mapping[str, Any]) -> Context:
    """Check the part of the command line from the verb on; InvalidArgument in the words of Go's cli
    package.
    """
    verb = find(name)
    flags, args = parse_flags(verb.flags, rest, verb.stop)
    if verb.least == verb.most and len(args) != verb.least:
        raise InvalidArgument(f'runc-bin: "{name}" requires exactly {verb.least} argument(s)')
    if len(args) < verb.least:
        raise InvalidArgument(f'runc-bin: "{name}" requires a minimum of {verb.least} argument(s)')
    if verb.most is not None and len(args) > verb.most:
        raise InvalidArgument(f'runc-bin: "{name}" requires a maximum of {verb.most} argument(s)')
    return Context(verb, globals_, flags, args)


def find(name: str) -> Verb:
    """The verb of that name; InvalidArgument."""
    verb = VERBS.get(name)
    if verb is None:
        raise InvalidArgument(f"No help topic for '{name}'")
    return verb


def usage(verb: Verb | None = None) -> str:
    """Help for a verb, or for all."""
    if verb is None:
        lines = [
            "runc-bin: an OCI runtime",
            "",
            "usage: runc-bin [global flags] verb [flags] [arguments]",
            "",
            "verbs:",
        ]
        lines += [f"  {item.name:10} {item.help}" for item in VERBS.values()]
        flags: Sequence[Flag] = GLOBAL_FLAGS
    else:
        lines = [f"usage: runc-bin {verb.name} [flags] {verb.arguments}".rstrip(), "", verb.help]
        flags = verb.flags
    if flags:
        lines += ["", "flags:"]
        lines += [
            f"  --{f.name:16} {f.help}" + (f" (default {f.default})" if f.default else "") for f in flags
        ]
    return "\n".join(lines) + "\n"
