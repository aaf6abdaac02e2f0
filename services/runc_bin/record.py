"""Immutable records, as frozen dataclasses are, for a command that lives hardly longer than their import.

Type checkers take a `Record` for a frozen dataclass (`typing.dataclass_transform`). Importing `dataclasses`
costs 9 to 17 ms and each class 0.7 ms more, which is a third of a cold `state`.
"""

from __future__ import annotations

from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_options: object) -> Any:
        """What only type checkers look at."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Record:
    """Base of all records: fields are the annotated names of the class, in order, with their defaults."""

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 - inspect is slow to import
        cls._fields = cls._fields + tuple(name for name in own if not name.startswith("_"))

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self.__dict__
        fields.update(zip(self._fields, values, strict=False))
        fields.update(named)
        if len(values) > len(self._fields) or not fields.keys() <= set(self._fields):
            raise TypeError(f"{type(self).__name__} has no such fields: {set(fields) - set(self._fields)}")
        missing = [name for name in self._fields if name not in fields and not hasattr(self, name)]
        if missing:
            raise TypeError(f"{type(self).__name__} lacks {', '.join(missing)}")

    def __setattr__(self, name: str, _value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash(tuple(self.as_dict().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.as_dict().items())})"

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, not copied."""
        return {name: getattr(self, name) for name in self._fields}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**self.as_dict(), **changes})
