"""The fields of a raw record, checked: what is missing or of another kind is told with file, line and field."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from lm_eval_edit.errors import UserError, in_one_error
from lm_eval_edit.tasklib.records.layouts import Placed, Record

_Read = TypeVar("_Read")
ENTAILMENT = ("entailment", "not_entailment")  # GLUE's labels 0 and 1 of RTE
_HALF = re.compile("[\ud800-\udfff]")
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
    for text in [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else ():
        if isinstance(text, str) and (half := _HALF.search(text)):
            where = f"\\u{ord(half[0]):04x} as character {half.start()}"
            raise UserError(
                f"{place}: the field '{name}' holds a lone surrogate ({where}): half a character, which no tokenizer "
                f"reads. Write the whole character, or leave it out"
            )
    return value


def strings(place: str, record: Record, name: str) -> list[str]:
    """A needed field that is a list of strings, and not empty."""
    values = field(place, record, name, list, tuple)
    if not values or not all(isinstance(value, str) for value in values):
        raise UserError(f"{place}: the field '{name}' should be a list of at least one string")
    return list(values)


def binary(place: str, record: Record, name: str) -> bool:
    """A needed field that is true or false, or 0 or 1."""
    value = field(place, record, name, int)
    if value not in (0, 1):
        raise _no_label(place, name, value)
    return bool(value)


def label(place: str, record: Record, name: str, *words: str) -> int:
    """A needed field that is the label 0 or 1: the number, its digit, or the word for it.

    A truth value is refused: it does not tell which label is meant (GLUE's 0 may be what one would call true).

    Args:
        words: What label 0 and label 1 are called, if they have names.
    """
    value = field(place, record, name, int, str)
    labels = {"0": 0, "1": 1} | {word: number for number, word in enumerate(words)}
    if isinstance(value, bool) or (value not in (0, 1) and value not in labels):
        raise _no_label(place, name, value, *words)
    return value if isinstance(value, int) else labels[value]


def _no_label(place: str, name: str, value: Any, *words: str) -> UserError:
    hints = ["a test split without labels?"] if value == -1 else []
    hints += [", ".join(f"{number} is {word}" for number, word in enumerate(words))] if words else []
    hint = f" ({'; '.join(hints)})" if hints else ""
    return UserError(f"{place}: the field '{name}' should be 0 or 1, got {value!r}{hint}")
