"""A file of facts as parsed records; what cannot be parsed is told line by line, not at the first line only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import parse_json, read_text
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fields import RepeatedKeys


@dataclass(frozen=True)
class Unreadable:
    """A line that is no JSON: its problem as a sentence, with file and line."""

    problem: str


def read_fact_records(path: Path) -> Iterator[tuple[int, Any]]:
    """The records of a JSON list, of a JSONL file, or of a file that holds one JSON object.

    Yields:
        (number, record): for JSONL the line number, else the position counted from 1. A record is what was parsed, its
        objects with repeated keys as `RepeatedKeys`, or `Unreadable`.

    Raises:
        UserError: the file is missing, no UTF-8 text, empty, or no line of it is JSON.
    """
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty; give a JSON list of facts, or one JSON object a line")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}, line {line}: holds a NUL byte, so it is no JSON text (UTF-16, or a binary file?)")
    if text.lstrip().startswith("["):
        yield from enumerate(_parse(text, path), start=1)
        return
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    records = [(number, _line(line, path, number)) for number, line in lines]
    if all(isinstance(record, Unreadable) for _, record in records):
        yield 1, _one_object(text, path, records[0][1].problem)
        return
    yield from records


def _line(line: str, path: Path, number: int) -> Any:
    try:
        return _parse(line.removeprefix("\ufeff"), path, number)  # a mark is inside where files were put together
    except UserError as error:
        return Unreadable(str(error))


def _one_object(text: str, path: Path, problem: str) -> Any:
    """The object that the whole file is, its lines being none."""
    try:
        return _parse(text, path)
    except UserError:
        raise UserError(
            f"{problem}. No line of the file is JSON; give a JSON list of facts, or one JSON object a line"
        ) from None


def _parse(text: str, path: Path, first_line: int = 1) -> Any:
    return parse_json(text, path, first_line, pairs=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python would keep the last of two values of one key and say nothing."""
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    repeated = RepeatedKeys(content)
    repeated.repeated = tuple(dict.fromkeys(key for key, value in pairs if not _same(value, content[key])))
    return repeated if repeated.repeated else content


def _same(one: Any, other: Any) -> bool:
    return one == other or all(isinstance(value, float) and math.isnan(value) for value in (one, other))
