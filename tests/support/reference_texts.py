"""Reference texts in the layout of the published file, small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def made(folder: Path, entries: Any, name: str = "snippets.json") -> Path:
    """A JSON file of some entries."""
    path = folder / name
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


ENTRIES = [
    {"relation_id": "P19", "target_id": "Q84", "samples": [{"name": "A", "text": "born in London town"}]},
    {"relation_id": "P19", "target_id": "Q90", "samples": [{"text": "Paris"}, {"text": "in Paris London"}]},
    {"relation_id": "P19", "target_id": "Q84", "samples": [{"text": "London"}]},
]
