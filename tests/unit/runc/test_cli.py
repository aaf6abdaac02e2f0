"""The command line as Go's callers write it."""

from __future__ import annotations

import pytest
from errdefs import InvalidArgument
from runc_bin import cli
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
        (["run", "--detach=maybe", "a"], 'invalid boolean value "maybe" for -detach'),
        (["checkpoint", "a"], "No help topic for 'checkpoint'"),
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
