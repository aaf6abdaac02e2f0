"""`suppress`, `contextmanager` and `ExitStack` for a command that lives hardly longer than their import.

To type checkers they are `contextlib`'s own, and they do what those do. That module brings `functools` and
`collections` along, 2 of a cold command's 20 milliseconds.
"""

from __future__ import annotations

from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import ExitStack, contextmanager, suppress
else:

    class suppress:  # noqa: N801 - its name there
        """Leave the block at one of these errors, as if it had ended there."""

        def __init__(self, *kinds: type[BaseException]) -> None:
            self._kinds = kinds

        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
            return kind is not None and issubclass(kind, self._kinds)

    class _Steps:
        """A generator as a context: what is before its one `yield`, and what is behind."""

        def __init__(self, generator: Any) -> None:
            self._generator = generator

        def __enter__(self) -> Any:
            return next(self._generator)

        def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
            try:
                if error is None:
                    next(self._generator)
                else:
                    self._generator.throw(error)
            except StopIteration:
                return error is not None
            except BaseException as raised:
                if raised is error:
                    return False
                raise
            raise RuntimeError("a context's generator went on after its end")

    def contextmanager(function: Any) -> Any:
        """Make a function that returns a generator one that returns a context."""

        def made(*words: Any, **named: Any) -> _Steps:
            return _Steps(function(*words, **named))

        made.__name__, made.__doc__ = function.__name__, function.__doc__
        return made

    class ExitStack:
        """Calls to be made at the end of the block, the last one first."""

        def __init__(self) -> None:
            self._exits: list[Any] = []

        def __enter__(self) -> ExitStack:
            return self

        def callback(self, function: Any, /, *words: Any, **named: Any) -> None:
            def call(*_: object) -> None:
                function(*words, **named)

            self._exits.append(call)

        def enter_context(self, context: Any) -> Any:
            value = context.__enter__()
            self._exits.append(context.__exit__)
            return value

        def pop_all(self) -> ExitStack:
            """Another stack with the calls of this one, which then has none."""
            other = ExitStack()
            other._exits, self._exits = self._exits, []
            return other

        def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
            first = error
            while self._exits:
                trace = None if error is None else error.__traceback__
                try:
                    if self._exits.pop()(error and type(error), error, trace):
                        error = None
                except BaseException as newer:
                    error = newer
            if error is not None and error is not first:
                raise error
            return first is not None and error is None


__all__ = ["ExitStack", "contextmanager", "suppress"]
