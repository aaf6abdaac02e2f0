"""A container's config merged with its image's, as Docker merges them (moby daemon/commit.go)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import errdefs


def merge(config: dict[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """What the client asked for, filled up from the `config` object of the image's document.

    A client's entrypoint discards the image's command; a client's command keeps the image's entrypoint.
    Variables and labels of the client win over the image's of the same name; exposed ports are joined.
    """
    merged = dict(config)
    merged["User"] = config["User"] or image.get("User") or ""
    merged["ExposedPorts"] = {**(image.get("ExposedPorts") or {}), **(config["ExposedPorts"] or {})} or None
    merged["Env"] = _env(config["Env"] or [], image.get("Env") or []) or None
    merged["Labels"] = {**(image.get("Labels") or {}), **(config["Labels"] or {})}
    if not config["Entrypoint"]:
        if not config["Cmd"]:
            merged["Cmd"] = list(image.get("Cmd") or []) or None
            merged["ArgsEscaped"] = bool(image.get("ArgsEscaped"))
        if config["Entrypoint"] is None:
            merged["Entrypoint"] = list(image.get("Entrypoint") or []) or None
    if merged["Entrypoint"] == [""]:  # how a client says "no entrypoint" (docker run --entrypoint "")
        merged["Entrypoint"] = None
    merged["WorkingDir"] = config["WorkingDir"] or image.get("WorkingDir") or ""
    merged["Volumes"] = None
    merged["StopSignal"] = config["StopSignal"] or image.get("StopSignal") or ""
    merged["OnBuild"] = image.get("OnBuild") or None
    if not merged["Entrypoint"] and not merged["Cmd"]:
        raise errdefs.InvalidArgument("no command specified")
    return merged


def path_and_args(config: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The program and its arguments of a merged config."""
    words = [*(config["Entrypoint"] or []), *(config["Cmd"] or [])]
    return words[0], tuple(words[1:])


def _env(own: list[str], inherited: list[str]) -> list[str]:
    names = {entry.partition("=")[0] for entry in own}
    kept = [entry for entry in inherited if entry.partition("=")[0] not in names]
    return [*own, *kept]


def process_env(
    config: Mapping[str, Any], *, hostname: str, tty: bool, user_home: str, default_path: str
) -> list[str]:
    """The environment of a container's first process: PATH, HOSTNAME, TERM and HOME where not set, then Env.

    An entry "NAME" without "=" removes the variable (docker run -e NAME with NAME unset).
    """
    entries: dict[str, str] = {"PATH": f"PATH={default_path}", "HOSTNAME": f"HOSTNAME={hostname}"}
    if tty:
        entries["TERM"] = "TERM=xterm"
    for entry in config["Env"] or []:
        name, equals, _ = entry.partition("=")
        if equals:
            entries[name] = entry
        else:
            entries.pop(name, None)
    entries.setdefault("HOME", f"HOME={user_home}")
    return list(entries.values())
