"""The command line as Go's callers write it."""

from __future__ import annotations

import pytest
from errdefs import InvalidArgument
from runc_bin import cli
from runc_bin.__main__ import _root_and_verb
from runc_bin.commands.kill import parse_signal


def parse(*words: str) -> cli.Context:
    flags, verb, rest = cli.split(words)
    return cli.parse_verb(verb, rest, flags)


def test_containerds_create() -> None:
    context = parse(
        *("--root", "/run/x", "--log", "/b/log.json", "--log-format", "json"),
        *("create", "--bundle", "/b", "--pid-file", "/b/init.pid", "--console-socket", "/t/pty.sock", "c1"),
    )
    assert context.root == "/run/x"
    assert context.globals["log-format"] == "json"
    assert context.text("bundle") == "/b"
    assert context.text("console-socket") == "/t/pty.sock"
    assert context.args == ["c1"]


def test_conmons_create() -> None:
    context = parse(
        *("--log-format=json", "--log=/b/oci-log", "create", "--bundle", "/b", "--pid-file", "/b/pidfile"),
        *("--no-new-keyring", "--preserve-fds=2", "c1"),
    )
    assert context.given("no-new-keyring")
    assert context.number("preserve-fds") == 2


# What callers of OCI runtimes pass, from their public sources: go-runc (containerd, BuildKit), conmon and
# libpod (podman), CRI-O.
CALLS = """
go-runc: --root /r --debug --log /l --log-format json state c
go-runc: --criu /usr/sbin/criu --rootless=false list --format=json
go-runc: --systemd-cgroup create --bundle /b --pid-file /p --console-socket /s --pidfd-socket /f c
go-runc: create --bundle /b --no-pivot --no-new-keyring --preserve-fds 2 c
go-runc: run --bundle /b --pid-file /p --detach --no-pivot -no-subreaper c
go-runc: start c
go-runc: exec --process /p.json --console-socket /s --pidfd-socket /f --detach --pid-file /p c
go-runc: kill --all c 9
go-runc: delete --force c
go-runc: events --stats c
go-runc: events --interval=7s c
go-runc: pause c
go-runc: resume c
go-runc: ps --format json c
go-runc: ps --format table c -ef
go-runc: update --resources=- c
go-runc: checkpoint --image-path /i --work-path /w --parent-path /p --leave-running --file-locks c
go-runc: checkpoint --tcp-established --ext-unix-sk --shell-job --page-server h:1 --pre-dump c
go-runc: checkpoint --manage-cgroups-mode full --empty-ns network --lazy-pages --status-fd 3 c
go-runc: restore --image-path /i --detach --pid-file /p --console-socket /s --bundle /b c
go-runc: restore --image-path /i --work-path /w --no-pivot -no-subreaper --bundle /b c
go-runc: features
go-runc: --version
BuildKit: --root /r --log /l --log-format json run --bundle /b --keep --no-pivot --pid-file /p c
conmon: --systemd-cgroup --root=/r --log-format=json --log=/l create --bundle /b --pid-file /p --no-pivot c
conmon: create --bundle /b --pid-file /p --no-new-keyring --preserve-fds=1 --console-socket /s c
conmon: --log-format=json exec --pid-file /p --process /p.json --detach --preserve-fds 1 --console-socket /s c
conmon: restore --bundle /b --pid-file /p --detach --image-path /i --work-path /b --tcp-established c
libpod: --root /r --systemd-cgroup start c
libpod: --rootless=true kill c 15
libpod: kill --all c KILL
libpod: update --resources /tmp/r.json c
CRI-O: --root=/r update --resources - c
"""


@pytest.mark.parametrize("call", CALLS.strip().splitlines())
def test_what_callers_pass(call: str) -> None:
    words = call.split()[1:]
    flags, verb, rest = cli.split(words)
    if not verb:
        assert flags["version"]
        return
    context = cli.parse_verb(verb, rest, flags)
    assert context.args[:1] == (["c"] if context.verb.least else [])
    defaults, _ = cli.parse_flags((*cli.GLOBAL_FLAGS, *context.verb.flags), (), None)
    found = {**flags, **context.flags}
    named = {word.lstrip("-").partition("=")[0] for word in words[: len(words) - len(context.args)]}
    taken = {name for name, value in found.items() if value != defaults[name] or value == "table"}
    assert taken == named & defaults.keys()


def test_the_root_is_found_before_anything_is_loaded() -> None:
    for call in CALLS.strip().splitlines():
        words = call.split()[1:]
        flags, verb, _ = cli.split(words)
        root = str(flags["root"]) or "/run/buoy-runc"
        assert _root_and_verb(words) == (root, verb), words


def test_one_dash_short_names_and_values() -> None:
    context = parse(
        "exec", "-d", "-t=false", "-p", "/p.json", "-e", "A=1", "--env=B=2", "c1", "sh", "-c", "x"
    )
    assert context.given("detach")
    assert not context.given("tty")
    assert context.text("process") == "/p.json"
    assert context.texts("env") == ["A=1", "B=2"]
    assert context.args == ["c1", "sh", "-c", "x"]


def test_flags_may_follow_the_id_where_no_command_does() -> None:
    assert parse("delete", "c1", "--force").given("force")
    assert parse("kill", "--all", "c1", "9").args == ["c1", "9"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create"], "requires exactly 1 argument"),
        (["create", "a", "b"], "requires exactly 1 argument"),
        (["exec"], "requires a minimum of 1 argument"),
        (["kill", "a", "9", "b"], "requires a maximum of 2 argument"),
        (["create", "--nope", "a"], "flag provided but not defined: -nope"),
        (["create", "--bundle"], "flag needs an argument: -bundle"),
        (["create", "--preserve-fds", "x", "a"], 'invalid value "x" for flag -preserve-fds'),
        (["nothing", "a"], "No help topic for 'nothing'"),
        (["run", "--detach=maybe", "a"], 'invalid boolean value "maybe" for -detach'),
    ],
)
def test_errors(words: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse(*words)


@pytest.mark.parametrize(
    ("text", "number"),
    [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN", 34), ("SIGRTMIN+3", 37), ("rtmax-1", 63), ("0", 0)],
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "NOPE", "99", "SIG", "SIG_DFL", "KILL+1", "RTMIN+99", "-9"])
def test_unknown_signals(text: str) -> None:
    with pytest.raises(InvalidArgument, match="unknown signal"):
        parse_signal(text)


def test_every_verb_has_help() -> None:
    for verb in cli.VERBS.values():
        assert verb.name in cli.usage(verb)
        assert verb.name in cli.usage()
