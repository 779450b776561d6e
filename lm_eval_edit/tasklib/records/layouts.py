"""Find the file of a data set in a folder and read it as records of the hub schema.

Two layouts are known, and one folder may hold both:

- `jsonl`: `<stem>.jsonl` or `<stem>.json`, for each stem that the set may have (one object a line, or one array);
- `paper`: the folder of Gu et al., `task-data/test-*.{jsonl,tsv,txt,json}` and `task-data/test-dialogue/dev_*.txt`.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.records.sets import RecordSet

Record = dict[str, Any]
Placed = tuple[str, Record]  # where it stands ("<file>:<line>", for messages), and what stands there

_DIALOGUE = re.compile(r"dev_(\d+)\.txt")


@dataclass(frozen=True)
class Found:
    """Where a set's data is: a file (or the folder of dialogues), and its layout, `jsonl` or `paper`."""

    path: Path
    layout: str


def candidates(records: RecordSet, folder: Path) -> list[Found]:
    """Every place where the records may be, in the order in which they are tried.

    The folder itself comes first, in both layouts, then each sub-folder in the paper's layout.
    """

    def flat(stems: Iterable[str]) -> list[Found]:
        return [Found(folder / f"{stem}{ending}", "jsonl") for stem in stems for ending in (".jsonl", ".json")]

    return [*flat(records.stems), *_paper(records, folder), *flat(records.vague)]


def _paper(records: RecordSet, folder: Path) -> list[Found]:
    if records.paper is None:
        return []
    inside = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    roots = [folder, *(p for p in inside if p.name != "task-data")]
    return [
        Found(folder / records.paper, "paper"),
        *(Found(root / "task-data" / records.paper, "paper") for root in roots),
    ]


def locate(records: RecordSet, folder: Path) -> Found | None:
    """The first of `candidates` that exists."""
    return next((found for found in candidates(records, folder) if found.path.exists()), None)


def read(found: Found) -> list[Placed]:
    """All records of the file, each with its place.

    Raises:
        UserError: The file cannot be read, a line is broken (file and line are named), or there is no record.
    """
    path = found.path
    try:
        if found.layout == "paper" and path.suffix == ".tsv":
            records = list(_tsv(path))
        elif found.layout == "paper" and path.suffix == ".txt":
            records = list(_conll(path))
        elif found.layout == "paper" and path.is_dir():
            records = list(_dialogues(path))
        else:
            records = list(_json(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not records:
        raise UserError(f"{path} holds no record")
    return records


def _json(path: Path) -> Iterator[Placed]:
    """JSON lines (empty ones skipped), or one JSON array."""
    text = path.read_bytes().decode("utf-8-sig")  # bytes: text mode would turn CR LF inside a dialogue into LF
    pairs: Iterator[tuple[str, Any]]
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: broken JSON: {error.msg} (column {error.colno})") from error
        except (RecursionError, ValueError) as error:  # nested without end, a number of thousands of digits
            raise UserError(f"{path}: JSON that cannot be read: {error}") from error
        pairs = ((f"{path}: record {i}", row) for i, row in enumerate(rows, 1))
    else:
        pairs = _json_lines(path, text)
    for place, row in pairs:
        if not isinstance(row, dict):
            raise UserError(f"{place}: a JSON object is wanted, got {type(row).__name__}")
        yield place, row


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 may stand inside a JSON string
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: broken JSON: {error.msg} (column {error.colno})") from error
            except (RecursionError, ValueError) as error:
                raise UserError(f"{path}:{number}: JSON that cannot be read: {error}") from error


def _tsv(path: Path) -> Iterator[Placed]:
    """GLUE's tab-separated files, with a header, read as the paper's scripts read them.

    That is with csv's quoting, so that quotation marks around a field, or at its start and somewhere inside, are lost:
    of RTE's 2,489 prompts that changes 69.
    """
    with path.open(encoding="utf-8") as lines:
        rows = csv.reader(lines, delimiter="\t")
        header = next(rows, [])
        for row in rows:
            place = f"{path}:{rows.line_num}"
            if len(row) != len(header):
                raise UserError(
                    f"{place}: {len(row)} columns where the header has {len(header)} (a quotation mark that begins a "
                    f"field and is never closed takes in all that follows)"
                )
            yield place, dict(zip(header, row, strict=True))


def _conll(path: Path) -> Iterator[Placed]:
    """CoNLL's columns: word first, BIO tag last, an empty line after each sentence. Tags stay strings.

    `-DOCSTART-` blocks are kept here; `documents` drops and counts them.
    """
    tokens: list[str] = []
    tags: list[str] = []
    first = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate([*lines, ""], 1):
            columns = line.split()
            if columns:
                if len(columns) < 2:
                    raise UserError(f"{path}:{number}: a word and its tag are wanted, got {line.strip()!r}")
                first = first or number
                tokens.append(columns[0])
                tags.append(columns[-1])
            elif tokens:
                yield f"{path}:{first}", {"tokens": tokens, "ner_tags": tags}
                tokens, tags, first = [], [], 0


def _dialogues(folder: Path) -> Iterator[Placed]:
    """`dev_<n>.txt`, one Python literal each, in the order of n."""
    numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := _DIALOGUE.fullmatch(path.name))]
    for _, path in sorted(numbered):
        try:
            record = ast.literal_eval(path.read_text(encoding="utf-8").strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise UserError(f"{path}:{getattr(error, 'lineno', None) or 1}: not a Python literal: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}: a dictionary is wanted, got {type(record).__name__}")
        yield str(path), record
