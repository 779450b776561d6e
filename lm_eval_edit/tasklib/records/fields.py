"""The fields of a raw record, checked: what is missing or of another kind is told with file, line and field."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from lm_eval_edit.errors import UserError, in_one_error
from lm_eval_edit.tasklib.records.layouts import Placed, Record

_Read = TypeVar("_Read")
_MOST = 20  # broken records told one by one


def each(records: Iterable[Placed], read: Callable[[str, Record], _Read]) -> list[_Read]:
    """What `read` makes of each record.

    Raises:
        UserError: every record that it refuses, the first twenty in words.
    """
    found, problems = [], []
    for place, record in records:
        try:
            found.append(read(place, record))
        except UserError as error:
            problems.append(str(error))
    if problems:
        more = len(problems) - _MOST
        raise in_one_error(problems[:_MOST] + ([f"and {more} more records like these"] if more > 0 else []))
    return found


def field(place: str, record: Record, name: str, *kinds: type) -> Any:
    """The value of a needed field, of one of the wanted types."""
    if name not in record:
        raise UserError(f"{place}: the field '{name}' is missing (there are: {', '.join(map(str, record)) or 'none'})")
    value = record[name]
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{place}: the field '{name}' should be {wanted}, got {type(value).__name__}")
    return value


def strings(place: str, record: Record, name: str) -> list[str]:
    """A needed field that is a list of strings, and not empty."""
    values = field(place, record, name, list, tuple)
    if not values or not all(isinstance(value, str) for value in values):
        raise UserError(f"{place}: the field '{name}' should be a list of at least one string")
    return list(values)


def binary(place: str, record: Record, name: str) -> bool:
    """A needed field that is 0 or 1."""
    value = field(place, record, name, int)
    if value not in (0, 1):
        raise UserError(f"{place}: the field '{name}' should be 0 or 1, got {value} (a test split without labels?)")
    return bool(value)
