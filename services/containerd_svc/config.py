"""The daemon's configuration file: TOML in the form of containerd's, version 2.

Only what is listed here is understood. A key that would be ignored is an error, so that nobody believes to
have set what is not; paths and addresses come from the command line.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import errdefs

from containerd_svc import plugins

_KEYS = ("version", "disabled_plugins", "plugins")


@dataclass(frozen=True)
class Config:
    """disabled: full names of the plugins that are left out. shims: name of a runtime → path of the shim that
    it means, instead of what it would mean otherwise.
    """

    disabled: frozenset[str] = frozenset()
    shims: Mapping[str, str] = field(default_factory=dict)


def load(path: Path) -> Config:
    """Read a file. Raises InvalidArgument, which names the file and the key; NotFound for no such file."""
    try:
        return parse(path.read_text())
    except FileNotFoundError:
        raise errdefs.NotFound(f"{path}: no such file") from None
    except OSError as error:
        raise errdefs.InvalidArgument(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise errdefs.InvalidArgument(f"{path}: not UTF-8") from None
    except errdefs.InvalidArgument as error:
        raise errdefs.InvalidArgument(f"{path}: {error.message}") from None


def parse(text: str) -> Config:
    """The configuration of a file's text. Raises InvalidArgument."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise errdefs.InvalidArgument(f"not TOML: {error}") from None
    _known(document, _KEYS, "")
    version = document.get("version")
    if type(version) is not int or version != 2:
        raise errdefs.InvalidArgument(f"version must be 2, not {version!r}")
    return Config(
        disabled=plugins.check_disabled(_words(document, "disabled_plugins")),
        shims=_shims(_table(document, "plugins", "")),
    )


def _shims(settings: dict[str, Any]) -> dict[str, str]:
    """What the table `shims` of the plugin of tasks says."""
    _known(settings, (plugins.TASK,), "plugins.")
    task = _table(settings, plugins.TASK, "plugins.")
    _known(task, ("shims",), f"plugins.{plugins.TASK}.")
    found = _table(task, "shims", f"plugins.{plugins.TASK}.")
    for name, path in found.items():
        if not isinstance(path, str) or not os.path.isabs(path):
            raise errdefs.InvalidArgument(f"shims: {name!r} must have an absolute path, not {path!r}")
    return found


def _known(table: dict[str, Any], keys: Sequence[str], lead: str) -> None:
    unknown = sorted(table.keys() - set(keys))
    if unknown:
        raise errdefs.InvalidArgument(f"unknown key {lead + unknown[0]!r}; known are {', '.join(keys)}")


def _table(document: dict[str, Any], key: str, lead: str) -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise errdefs.InvalidArgument(f"{lead}{key} must be a table, not {value!r}")
    return value


def _words(document: dict[str, Any], key: str) -> list[str]:
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise errdefs.InvalidArgument(f"{key} must be a list of strings, not {value!r}")
    return value
