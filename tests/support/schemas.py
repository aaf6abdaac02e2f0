"""Check replies against the shapes of tests/contract/schemas, whose files say how they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PLAIN: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "digest": lambda value: (
        isinstance(value, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", value) is not None
    ),
    "kind": lambda value: value in ("image", "attestation", "unknown"),
}


class Shapes:
    """The shapes of one file."""

    def __init__(self, path: Path) -> None:
        self._shapes: dict[str, Any] = json.loads(path.read_text())

    def check(self, value: Any, kind: str, where: str = "reply") -> None:
        """Fails with the place in `value` that is not of the kind, written as in the file."""
        if kind.endswith("?"):
            if value is None:
                return
            kind = kind[:-1]
        if kind.startswith("["):
            assert isinstance(value, list), f"{where} is no list: {value!r}"
            for number, entry in enumerate(value):
                self.check(entry, kind[1:-1], f"{where}[{number}]")
        elif kind.startswith("{"):
            assert isinstance(value, dict), f"{where} is no object: {value!r}"
            for key, entry in value.items():
                self.check(entry, kind[1:-1], f"{where}.{key}")
        elif kind.startswith("#"):
            self._check_shape(value, self._shapes[kind[1:]], where)
        else:
            assert _PLAIN[kind](value), f"{where} is not of type {kind}: {value!r}"

    def _check_shape(self, value: Any, shape: dict[str, str], where: str) -> None:
        assert isinstance(value, dict), f"{where} is no object: {value!r}"
        known = {key.removesuffix("?") for key in shape}
        assert not value.keys() - known, f"{where} has {sorted(value.keys() - known)}"
        for key, kind in shape.items():
            name = key.removesuffix("?")
            if name in value:
                self.check(value[name], kind, f"{where}.{name}")
            else:
                assert key.endswith("?"), f"{where} has no {name}"
