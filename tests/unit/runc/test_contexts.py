"""Our contexts do what those of `contextlib` do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from runc_bin import contexts


def fail(error: BaseException) -> None:
    """Raise, out of sight of type checkers, which know what `suppress` does."""
    raise error


both = pytest.mark.parametrize("module", [contexts, contextlib], ids=["ours", "theirs"])


@both
def test_suppress(module: ModuleType) -> None:
    with module.suppress(OSError, KeyError):
        fail(FileNotFoundError())
    with module.suppress(OSError):
        pass
    with pytest.raises(ValueError, match="out"), module.suppress(OSError):
        fail(ValueError("out"))
    with pytest.raises(OSError, match="out"), module.suppress():
        fail(OSError("out"))


@both
def test_a_generator_as_context(module: ModuleType) -> None:
    seen: list[object] = []

    @module.contextmanager  # type: ignore[untyped-decorator]
    def around(word: str, *, swallow: bool) -> Iterator[str]:
        """What it does."""
        try:
            yield word
        except KeyError as error:
            seen.append(error.args[0])
            if not swallow:
                raise OSError("instead") from error
        finally:
            seen.append("end")

    with around("a", swallow=True) as word:
        seen.append(word)
    with around("b", swallow=True):
        fail(KeyError("swallowed"))
    with pytest.raises(OSError, match="instead") as caught, around("c", swallow=False):
        fail(KeyError("turned"))
    assert isinstance(caught.value.__cause__, KeyError)
    error = ValueError("passes")
    with pytest.raises(ValueError, match="passes") as passed, around("d", swallow=True):
        fail(error)
    assert passed.value is error
    assert seen == ["a", "end", "swallowed", "end", "turned", "end", "end"]
    assert (around.__name__, around.__doc__) == ("around", "What it does.")


@both
def test_a_stack_ends_in_reverse_order(module: ModuleType) -> None:
    seen: list[object] = []
    with module.ExitStack() as stack:
        stack.callback(seen.append, 1)
        with module.ExitStack() as inner:
            assert stack.enter_context(inner) is inner
        inner.callback(seen.append, 2)
        stack.callback(lambda *, word: seen.append(word), word=3)
    assert seen == [3, 2, 1]


@both
def test_a_stack_that_gives_its_calls_away(module: ModuleType) -> None:
    seen: list[object] = []
    with module.ExitStack() as stack:
        stack.callback(seen.append, 1)
        other = stack.pop_all()
    assert seen == []
    with other:
        pass
    assert seen == [1]


@both
def test_errors_at_the_end_of_a_stack(module: ModuleType) -> None:
    seen: list[object] = []

    def undo() -> None:
        seen.append("failed")
        raise KeyError("of the undoing")

    def run(*calls: Callable[[], object], outer: object) -> None:
        with module.ExitStack() as stack:
            stack.enter_context(outer)
            for call in calls:
                stack.callback(call)
            fail(ValueError("first"))

    with pytest.raises(KeyError, match="of the undoing"):
        run(lambda: seen.append("later"), undo, outer=module.suppress())
    run(undo, outer=module.suppress(KeyError))
    with pytest.raises(ValueError, match="first"):
        run(lambda: seen.append("undone"), outer=module.suppress(KeyError))
    assert seen == ["failed", "later", "failed", "undone"]
