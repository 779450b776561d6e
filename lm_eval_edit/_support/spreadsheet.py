"""CSV that a spreadsheet shows and never runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval_edit._support.terminal import one_line

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(value: Any) -> Any:
    """A cell: a text that begins as a formula does gets an apostrophe, by which spreadsheets know a text.

    Numbers are left as they are, also those written as text; controls become escapes (`_terminal`).
    """
    if not isinstance(value, str):
        return value
    return f"'{one_line(value)}" if value.startswith(_FORMULA) and not _is_number(value) else one_line(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


def csv_text(fields: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    """A CSV file with a head line; a record may lack fields."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [cell(name) for name in fields], lineterminator="\n")
    writer.writeheader()
    writer.writerows({cell(name): cell(value) for name, value in record.items()} for record in records)
    return out.getvalue()
