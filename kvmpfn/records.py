"""What every part of a scenario is: a frozen record, checked once, that explains itself in one line."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kvmpfn.units import InputError, nearest, parse_rate, parse_size, parse_time

__all__ = ["Flag", "Rate", "Record", "Share", "Size", "Time", "Whole", "each"]


class Record(BaseModel):
    """A frozen set of fields; a wrong one is an `InputError` that names the nearest valid value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _explained(type(self), error) from None

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked again."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def with_path(self, path: str, value: Any) -> Self:
        """Return a copy with the value at a dotted path changed.

        Parameters
        ----------
        path : str
            Names of fields and numbers of list entries, such as ``storms.0.rate``.
        value : object
            What stands there in the copy.
        """
        name, _, rest = path.partition(".")
        if name not in type(self).model_fields:
            raise _unknown_key(type(self), name)
        return (
            self.replace(**{name: _within(self._part(name), name, rest, value)})
            if rest
            else self.replace(**{name: value})
        )

    def plain(self) -> Any:
        """Return the record as dicts, lists, strings and numbers; what is None is left out."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: _plain(value) for name, value in values.items() if value is not None}

    def _part(self, name: str) -> Any:
        """Return the field that a dotted path goes on into."""
        return getattr(self, name)


def each(values: Iterable[Any], make: Callable[[Any], Any]) -> list[Any]:
    """Make a record of each value; an error says of which."""
    records = []
    for number, value in enumerate(values):
        try:
            records.append(make(value))
        except InputError as error:
            raise error.within(str(number)) from None
    return records


def _plain(value: Any) -> Any:
    """Turn a field into what TOML and JSON know."""
    if isinstance(value, Record):
        return value.plain()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


def _within(part: Any, where: str, path: str, value: Any) -> Any:
    """Return a changed copy of a field: a record or a list of records."""
    try:
        if isinstance(part, Record):
            return part.with_path(path, value)
        if isinstance(part, tuple):
            number, _, rest = path.partition(".")
            if not number.isdecimal() or int(number) >= len(part):
                near = f"; nearest is {len(part) - 1}" if part else ": it is empty"
                raise InputError(f"no entry {number!r}{near}")
            changed = _within(part[int(number)], number, rest, value) if rest else value
            return (*part[: int(number)], changed, *part[int(number) + 1 :])
    except InputError as error:
        raise error.within(where) from None
    raise InputError(f"has no parts; nearest is {where!r} itself", where)


def _unknown_key(cls: type[BaseModel], key: object) -> InputError:
    """Say that a key is unknown, and which is nearest."""
    return InputError(f"unknown key {key!r}; nearest is {nearest(key, cls.model_fields)!r}", cls.__name__)


def _explained(cls: type[BaseModel], error: ValidationError) -> InputError:
    """Turn pydantic's report into one line."""
    reports = error.errors(include_url=False)
    first = next((one for one in reports if one["type"] == "extra_forbidden"), reports[0])
    if first["type"] == "extra_forbidden":
        return _unknown_key(cls, first["loc"][-1])
    field = str(first["loc"][0]) if first["loc"] else ""
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause.within(field) if field else cause
    where, given, context = field or cls.__name__, first["input"], first.get("ctx", {})
    if first["type"] == "missing":
        return InputError("missing; give it a value", where)
    if first["type"] == "literal_error":
        options = get_args(cls.model_fields[field].annotation)
        if all(type(one) is int for one in (given, *options)):
            near = min(options, key=lambda option: abs(option - given))
        else:
            near = {str(option): option for option in options}[nearest(given, options)]
        every = ", ".join(map(str, options))
        return InputError(f"{given!r} is not one of {every}; nearest is {near!r}", where)
    for bound in ("ge", "le", "gt", "lt"):
        if bound in context:
            return InputError(f"{given!r} is out of range; nearest is {context[bound]}", where)
    return InputError(f"{given!r}: {first['msg'][:1].lower()}{first['msg'][1:]}", where)


def _whole(value: Any) -> int:
    """Accept whole numbers, numpy's too, and no truth values."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        near = round(value) if isinstance(value, float | Decimal) and value == value else 1
        raise InputError(f"{value!r} is not a whole number; nearest is {near}") from None


def _flag(value: Any) -> Any:
    """Accept truth values only."""
    if isinstance(value, bool):
        return value
    raise InputError(f"{value!r} is not a truth value; nearest is {bool(value) and value != 'false'}")


def _share(value: Any) -> float:
    """Accept numbers."""
    if isinstance(value, bool | str):
        raise InputError(f"{value!r} is not a number from 0 to 1; nearest is 0.5")
    return float(value)


def _written(parse: Any) -> Any:
    """Check a quantity, and keep it as it was written."""

    def check(value: Any) -> Any:
        parse(value)
        return value

    return check


Size = Annotated[int | str, BeforeValidator(_written(parse_size))]
Time = Annotated[int | str, BeforeValidator(_written(parse_time))]
Rate = Annotated[str, BeforeValidator(_written(parse_rate))]
Whole = Annotated[int, BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Share = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)]
