"""The published lists as checksums of their items, so that a run can tell whether what it asks is what papers ask.

The lists come without a licence and are not copied. `published.json` has two bytes of a hash of every item's prompt and
right answer, in the lists' order: enough to tell a list and the place of what is another text, and nothing to read.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval_edit.tasklib.glue import prompts

_FILE = Path(__file__).with_name("published.json")
_BYTES = 2  # one of 65,536 other items has an item's checksum


def length(task: str) -> int:
    """How many items the published list has."""
    return len(_lists()[task])


def agreeing(task: str, docs: Iterable[Mapping[str, Any]], first: int = 0) -> int:
    """How many documents are, in prompt and answer, the published items from `first` on, each at its place."""
    known = _lists()[task][first:]
    return sum(checksum(doc) == item for doc, item in zip(docs, known, strict=False))


def is_list(task: str, docs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether records are the published list itself, in its order, but for the text of some.

    Args:
        docs: Of all records of a file, in the order of the file.
    """
    return len(docs) == length(task) and 2 * agreeing(task, docs) > len(docs)


def checksum(doc: Mapping[str, Any]) -> bytes:
    """Of a document's prompt and its right answer."""
    text = f"{getattr(prompts, doc['task'])(doc)}\0{prompts.target(dict(doc))}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_BYTES]


@lru_cache
def _lists() -> dict[str, list[bytes]]:
    found = {task: base64.b64decode(text) for task, text in json.loads(_FILE.read_text(encoding="utf-8")).items()}
    return {task: [text[at : at + _BYTES] for at in range(0, len(text), _BYTES)] for task, text in found.items()}
