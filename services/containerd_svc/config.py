"""The daemon's configuration file: TOML in the form of containerd's, version 2.

Only what is listed here is understood. A key that would be ignored is an error, so that nobody believes to
have set what is not; paths and addresses come from the command line.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import errdefs

from containerd_svc import plugins

_KEYS = ("version", "disabled_plugins")


@dataclass(frozen=True)
class Config:
    """disabled: full names of the plugins that are left out."""

    disabled: frozenset[str] = frozenset()


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
    unknown = sorted(document.keys() - set(_KEYS))
    if unknown:
        raise errdefs.InvalidArgument(f"unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    version = document.get("version")
    if type(version) is not int or version != 2:
        raise errdefs.InvalidArgument(f"version must be 2, not {version!r}")
    return Config(disabled=plugins.check_disabled(_words(document, "disabled_plugins")))


def _words(document: dict[str, Any], key: str) -> list[str]:
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise errdefs.InvalidArgument(f"{key} must be a list of strings, not {value!r}")
    return value
