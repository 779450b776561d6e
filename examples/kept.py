"""What the scripts that measure share: what they have measured is kept in a file, and told in a table on a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from lm_eval_edit._support.files import write_bytes, write_json


def read(kept: Path) -> dict[str, Any]:
    """What has been measured so far, by row."""
    return json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}


def keep(kept: Path, rows: dict[str, Any]) -> None:
    """Write rows beside the others; another process may measure those."""
    with FileLock(kept.with_suffix(".lock")):
        write_json(kept, read(kept) | rows)


def replace_between(page: Path, begin: str, end: str, table: str) -> None:
    """Put a table into a page, between its marks."""
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} has no place for the table: write {begin} and {end} where it is to stand")
    write_bytes(page, f"{before}{begin}\n{table}\n{end}{after}".encode())
