"""The layout of the nursery's memory."""

from __future__ import annotations

from shim_svc.pages import bring_together, code_of


def _outer(number: int) -> int:
    return _inner(number) + 1


def _inner(number: int, step: int = 2) -> int:
    return number + step


def _unused() -> int:
    return 7


def test_the_code_of_what_was_called_is_known_and_copied() -> None:
    codes = {function: function.__code__ for function in (_outer, _inner, _unused)}
    called = code_of(lambda: print(_outer(1)))
    assert codes[_outer] in called
    assert codes[_inner] in called
    assert codes[_unused] not in called
    bring_together({codes[_outer], codes[_inner]})
    assert _outer.__code__ is not codes[_outer]
    assert _outer.__code__ == codes[_outer]
    assert _unused.__code__ is codes[_unused]
    assert (_outer(1), _inner(1), _inner(1, step=5)) == (4, 3, 6)
