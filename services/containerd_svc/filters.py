"""containerd's filter language: which objects a List call wants.

A filter is `selector,selector…`, all of which must hold; a list of filters matches when any of them does, and
an empty list matches everything. A selector is `field.path`, `field.path==value`, `!=value` or `~=regexp`; a
part of the path or a value may be quoted as in Go. Grammar: containerd's pkg/filters. Regular expressions are
Python's: the RE2 syntax that containerd's clients write is a subset of it, but for named classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

import errdefs

# The value at a path, or None when the object has nothing there.
Lookup = Callable[[Sequence[str]], str | None]
Filter = Callable[[Lookup], bool]

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*|[0-9]+")
_VALUE = re.compile(r'[^\s,"][^\s,]*')
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_OPERATORS = ("==", "!=", "~=")


def parse(filters: Sequence[str]) -> Filter:
    """One predicate for a request's filters. Raises InvalidArgument for one that does not parse."""
    parsed = [_Parser(text).selectors() for text in filters if text]
    if len(parsed) < len(filters) or not parsed:
        return lambda lookup: True  # no filter, or an empty one among them, matches everything
    return lambda lookup: any(all(selector(lookup) for selector in selectors) for selectors in parsed)


def labels_at(path: Sequence[str], labels: Mapping[str, str]) -> str | None:
    """The label that a path below `labels` names: dots in an unquoted name split it, so they are put back."""
    return labels.get(".".join(path))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def selectors(self) -> list[Filter]:
        found = [self._selector()]
        while self._skip_blanks() < len(self.text):
            if self.text[self.at] != ",":
                raise self._error(f"unexpected {self.text[self.at]!r}")
            self.at += 1
            found.append(self._selector())
        return found

    def _selector(self) -> Filter:
        path = [self._token(_FIELD, "field")]
        while self.text.startswith(".", self._skip_blanks()):
            self.at += 1
            path.append(self._token(_FIELD, "field"))
        operator = self.text[self.at : self.at + 2]
        if operator not in _OPERATORS:
            return lambda lookup: lookup(path) is not None
        self.at += 2
        value = self._pattern() if operator == "~=" else self._value()
        if operator == "==":
            return lambda lookup: lookup(path) == value
        if operator == "!=":
            return lambda lookup: lookup(path) != value
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise self._error(f"bad regular expression {value!r}: {error}") from error
        return lambda lookup: (found := lookup(path)) is not None and pattern.search(found) is not None

    def _skip_blanks(self) -> int:
        """Blanks may stand before any token; the position of the next one."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.at

    def _value(self) -> str:
        """The value of `==` or `!=`: a slash or a bar quotes patterns only, so it begins no plain value."""
        if self.text.startswith(("/", "|"), self._skip_blanks()):
            raise self._error("invalid quote encountered")
        return self._token(_VALUE, "value")

    def _pattern(self) -> str:
        """The value of `~=`, which may also be quoted by slashes or bars, with nothing but those escaped."""
        quote = self.text[self._skip_blanks() : self.at + 1]
        if quote not in ("/", "|"):
            return self._token(_VALUE, "value")
        found = re.compile(rf"{re.escape(quote)}((?:[^{quote}\\\n]|\\.)*){re.escape(quote)}").match(
            self.text, self.at
        )
        if found is None:
            raise self._error("quoted value without an end")
        self.at = found.end()
        return found.group(1).replace(f"\\{quote}", quote)

    def _token(self, plain: re.Pattern[str], what: str) -> str:
        quoted = _QUOTED.match(self.text, self._skip_blanks())
        if quoted:
            self.at = quoted.end()
            try:
                text: str = json.loads(quoted.group())
            except ValueError as error:
                raise self._error(f"bad quoted {what}") from error
            return text
        found = plain.match(self.text, self.at)
        if not found:
            raise self._error(f"expected a {what}")
        self.at = found.end()
        return found.group()

    def _error(self, reason: str) -> errdefs.InvalidArgument:
        return errdefs.InvalidArgument(
            f"filters: parse error at {self.at} of {self.text!r}: {reason}: invalid argument"
        )
