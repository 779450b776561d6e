"""The facts that an export of an edited model carries, so that tasks can ask about them wherever it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import read_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Facts, read_facts

RECORD = "lm_eval_edit_export.json"
"""The file in which an export says what it is."""

# Arguments of the harness's model types that may name an export's folder, an adapter's before its base model's.
_NAMING = ("peft", "lora_local_path", "pretrained", "model", "path")


def export_of(arguments: Mapping[str, Any]) -> Path | None:
    """The export that a run's model arguments name, an adapter before a checkpoint; None where they name none."""
    named = (arguments.get(name) for name in _NAMING)
    folders = (Path(folder).expanduser() for folder in named if isinstance(folder, str | Path))
    return next((folder for folder in folders if (folder / RECORD).is_file()), None)


def edited_in_chat(folder: Path) -> bool:
    """Whether the facts of an export were edited inside the model's chat template."""
    return bool(_edits(folder).get("chat_template"))


def exported_facts(folder: Path) -> Facts:
    """The facts that were edited into an export, first to last.

    Raises:
        UserError: its record holds none, or cannot be read.
    """
    facts = _edits(folder).get("facts")
    if not isinstance(facts, list) or not facts:
        raise UserError(f"{folder / RECORD} lists no edited facts; make the export again, or give edit_dataset=FILE")
    return read_facts(enumerate(facts, start=1), str(folder))


def _edits(folder: Path) -> Mapping[str, Any]:
    record = read_json(folder / RECORD)
    edits = record.get("edits") if isinstance(record, Mapping) else None
    return edits if isinstance(edits, Mapping) else {}
