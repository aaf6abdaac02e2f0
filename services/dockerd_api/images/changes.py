"""The `changes` of an import or a commit: Dockerfile instructions that alter the image's config, and nothing
else.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import errdefs

_SHELL = ["/bin/sh", "-c"]
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_PORT = re.compile(r"(?:(\d+)(?:-(\d+))?)(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::([-+])([^}]*))?\})", re.ASCII)
# Those in whose arguments variables are replaced.
_EXPANDED = frozenset({"env", "expose", "label", "stopsignal", "user", "volume", "workdir"})
# What is said when nothing is left of the arguments then; others take it.
_WITHOUT_EMPTY = {
    "stopsignal": "invalid signal: ",
    "volume": "VOLUME specified can not be an empty string",
    "workdir": "cannot normalize nothing",
}
_FLAG = re.compile(r"--([a-z-]+)=(\S+)\s*")
_HEALTH_FLAGS = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}


def apply(changes: Sequence[str], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config (Docker's keys) that the instructions make of the base. Raises InvalidArgument with Docker's
    words.

    An entrypoint discards the base's command (moby builder/dockerfile/dispatchers.go).
    """
    config = {key: copy.deepcopy(value) for key, value in (base or {}).items() if value is not None}
    own_command = False
    for change in changes:
        for line in change.splitlines():
            if not line.strip():
                continue
            name = _apply_line(config, line.strip())
            own_command = own_command or name == "cmd"
            if name == "entrypoint" and not own_command:
                config.pop("Cmd", None)
    return config


def _apply_line(config: dict[str, Any], line: str) -> str:
    """The instruction's name, in small letters."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    instruction = _INSTRUCTIONS.get(name.lower())
    if instruction is None:
        raise errdefs.InvalidArgument(f"{name.upper()} is not a valid change command")
    if not rest:
        raise errdefs.InvalidArgument(f"{name.upper()} requires at least one argument")
    if name.lower() in _EXPANDED:
        split = name.lower() == "label" or (name.lower() == "env" and "=" in rest.split(None, 1)[0])
        rest = _expanded(rest, config.get("Env") or (), split=split)
        if not rest.strip() and name.lower() in _WITHOUT_EMPTY:
            raise errdefs.InvalidArgument(_WITHOUT_EMPTY[name.lower()])
    instruction(config, rest)
    return name.lower()


def _expanded(text: str, environment: Sequence[str], *, split: bool) -> str:
    """The text with the environment's variables in place of `$name`, `${name}`, `${name:-word}` and
    `${name:+word}`, but not in single quotes. What is to be split into words is not split within a value.
    """
    values = {name: value for name, _, value in (entry.partition("=") for entry in environment)}
    out: list[str] = []
    at, quoted = 0, False
    while at < len(text):
        found = _VARIABLE.match(text, at)
        if found is not None:
            value = values.get(found[1] or found[2], "")
            if found[3] == "-":
                value = value or found[4]
            elif found[3] == "+":
                value = found[4] if value else ""
            special = r'(["\\])' if quoted else r"""([\s"'\\])"""
            out.append(re.sub(special, r"\\\1", value) if split else value)
            at = found.end()
            continue
        if text.startswith("${", at):
            raise errdefs.InvalidArgument(f"unsupported modifier in {json.dumps(text)}")
        end = at + 1
        if text[at] == "'" and not quoted:
            end = text.find("'", at + 1) + 1 or len(text)
        elif text[at] == "\\":
            end = at + 2
        elif text[at] == '"':
            quoted = not quoted
        out.append("$" if text[at:end] == "\\$" else text[at:end])
        at = end
    return "".join(out)


def _command(rest: str) -> list[str]:
    """The JSON form as it is, any other as the shell's argument."""
    words = _json_strings(rest)
    return [*_SHELL, rest] if words is None else words


def _json_strings(rest: str) -> list[str] | None:
    if not rest.startswith("["):
        return None
    try:
        words = json.loads(rest)
    except ValueError:
        return None
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        return words
    return None


def _words(rest: str, what: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError as error:
        raise errdefs.InvalidArgument(f"{what}: {error}") from error


def _pairs(rest: str, what: str, *, spaced: bool) -> list[tuple[str, str]]:
    """`key=value …`, or where `spaced` the old `key value`."""
    first = rest.split(None, 1)
    if spaced and "=" not in first[0]:
        if len(first) < 2:
            raise errdefs.InvalidArgument(f"{what} must have two arguments")
        return [(first[0], first[1])]
    pairs = []
    for word in _words(rest, what):
        key, equals, value = word.partition("=")
        if not equals:
            raise errdefs.InvalidArgument(
                f"Syntax error - can't find = in {json.dumps(word)}. Must be of the form: name=value"
            )
        if not key:
            raise errdefs.InvalidArgument(f"{what} names can not be blank")
        pairs.append((key, value))
    return pairs


def _cmd(config: dict[str, Any], rest: str) -> None:
    config["Cmd"] = _command(rest)


def _entrypoint(config: dict[str, Any], rest: str) -> None:
    config["Entrypoint"] = _command(rest)


def _env(config: dict[str, Any], rest: str) -> None:
    environment: list[str] = config.setdefault("Env", [])
    for key, value in _pairs(rest, "ENV", spaced=True):
        environment[:] = [entry for entry in environment if entry.partition("=")[0] != key]
        environment.append(f"{key}={value}")


def _label(config: dict[str, Any], rest: str) -> None:
    config.setdefault("Labels", {}).update(_pairs(rest, "LABEL", spaced=True))


def _expose(config: dict[str, Any], rest: str) -> None:
    ports = config.setdefault("ExposedPorts", {})
    for word in rest.split():
        found = _PORT.fullmatch(word)
        if found is None or not 1 <= int(found[1]) <= int(found[2] or found[1]) <= 65535:
            raise errdefs.InvalidArgument(f"invalid containerPort: {word}")
        for port in range(int(found[1]), int(found[2] or found[1]) + 1):
            ports[f"{port}/{(found[3] or 'tcp').lower()}"] = {}


def _volume(config: dict[str, Any], rest: str) -> None:
    volumes = config.setdefault("Volumes", {})
    for path in _json_strings(rest) or rest.split():
        if not path.strip():
            raise errdefs.InvalidArgument("VOLUME specified can not be an empty string")
        volumes[path.strip()] = {}


def _user(config: dict[str, Any], rest: str) -> None:
    if len(rest.split()) > 1:
        raise errdefs.InvalidArgument("USER requires exactly one argument")
    config["User"] = rest


def _workdir(config: dict[str, Any], rest: str) -> None:
    before = config.get("WorkingDir") or "/"
    path = rest if rest.startswith("/") else f"{before.rstrip('/')}/{rest}"
    config["WorkingDir"] = re.sub(r"/+", "/", path).rstrip("/") or "/"


def _onbuild(config: dict[str, Any], rest: str) -> None:
    word = rest.split()[0].upper()
    if word == "ONBUILD":
        raise errdefs.InvalidArgument("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if word in ("MAINTAINER", "FROM"):
        raise errdefs.InvalidArgument(f"{word} isn't allowed as an ONBUILD trigger")
    config.setdefault("OnBuild", []).append(rest)


def _stopsignal(config: dict[str, Any], rest: str) -> None:
    if not re.fullmatch(r"(?i:(?:SIG)?[A-Z]+[A-Z0-9+-]*)|[0-9]{1,2}", rest):
        raise errdefs.InvalidArgument(f"invalid signal: {rest}")
    config["StopSignal"] = rest


def _healthcheck(config: dict[str, Any], rest: str) -> None:
    health: dict[str, Any] = {}
    while rest.startswith("--"):
        found = _FLAG.match(rest)
        if found is None:
            raise errdefs.InvalidArgument(f"unknown flag: {rest.split()[0]}")
        name, value = found[1], found[2]
        if name in _HEALTH_FLAGS:
            health[_HEALTH_FLAGS[name]] = _duration(value, name)
        elif name == "retries" and value.isdigit() and int(value) >= 1:
            health["Retries"] = int(value)
        elif name == "retries":
            raise errdefs.InvalidArgument(f"--retries must be at least 1 (not {value})")
        else:
            raise errdefs.InvalidArgument(f"unknown flag: {name}")
        rest = rest[found.end() :]
    word, _, command = rest.partition(" ")
    if word.upper() == "NONE" and not command.strip():
        health = {"Test": ["NONE"]}
    elif word.upper() == "CMD" and command.strip():
        words = _json_strings(command.strip())
        health["Test"] = ["CMD-SHELL", command.strip()] if words is None else ["CMD", *words]
    elif word.upper() == "CMD":
        raise errdefs.InvalidArgument("missing command after HEALTHCHECK CMD")
    else:
        raise errdefs.InvalidArgument(f"unknown type {json.dumps(word.upper())} in HEALTHCHECK (try CMD)")
    config["Healthcheck"] = health


def _duration(text: str, flag: str) -> int:
    """Nanoseconds of a Go duration such as 1m30s."""
    total, at = 0.0, 0
    for found in _DURATION.finditer(text):
        if found.start() != at:
            break
        total += float(found[1]) * _UNITS[found[2]]
        at = found.end()
    if at != len(text) or not text:
        raise errdefs.InvalidArgument(f"time: invalid duration {json.dumps(text)}")
    if 0 < total < 10**6:
        raise errdefs.InvalidArgument(f"Interval {json.dumps(flag)} cannot be less than 1ms")
    return int(total)


_INSTRUCTIONS = {
    "cmd": _cmd,
    "entrypoint": _entrypoint,
    "env": _env,
    "expose": _expose,
    "healthcheck": _healthcheck,
    "label": _label,
    "onbuild": _onbuild,
    "stopsignal": _stopsignal,
    "user": _user,
    "volume": _volume,
    "workdir": _workdir,
}
