"""How a sweep was made and how to make it, or one cell of it, again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_eval_edit.report.comparing import below
from lm_eval_edit.sweep.reading import CellData, RowData, Sweep

#: Results of an editor's work, too long for a table of settings; the results file holds them.
_NO_SETTINGS = ("context_templates",)


@dataclass(frozen=True)
class RowSettings:
    """The settings of one row.

    Attributes:
        said: Name and value, in a fixed order.
        options: Hyper-parameters and their values.
        facts: Ids of the facts, in the order in which they were edited.
        cells: Of each cell its path, its number of edits, the fingerprint of its weights and the command that makes it.
    """

    row: RowData
    said: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]
    cells: tuple[tuple[str, int, str, str], ...]


def row_settings(sweep: Sweep, row: RowData) -> RowSettings:
    """The settings of a row, from what its cells recorded."""
    with_edits = [cell for cell in row.cells if cell.edit]
    edit: Mapping[str, Any] = with_edits[-1].edit if with_edits else {}
    dataset = edit.get("dataset") or {}
    said = {
        "editor": row.editor,
        "preset": edit.get("preset"),
        "layers": edit.get("layers") if "layers" not in (edit.get("options") or {}) else None,
        "facts from": dataset.get("source") or row.dataset,
        "facts' sha256": dataset.get("sha256"),
        "edit seed": "none: in the file's order" if row.edit_seed is None else row.edit_seed,
        "facts in one operation": row.edit_batch_size,
        "second moments": _without_folder(edit.get("second_moments")),
        "unedited weights": edit.get("unedited_fingerprint"),
    }
    options = {name: value for name, value in (edit.get("options") or {}).items() if name not in _NO_SETTINGS}
    return RowSettings(
        row,
        tuple((name, plain(value)) for name, value in said.items() if value is not None),
        tuple((name, plain(value)) for name, value in options.items()),
        tuple(map(str, edit.get("fact_ids") or ())),
        tuple(
            (below(sweep, cell.folder), cell.n_edits, cell.edit.get("weights_fingerprint") or "", command(sweep, cell))
            for cell in row.cells
            if cell.results
        ),
    )


def _without_folder(value: Any) -> Any:
    """A file by its name: where it lay on that machine helps nobody else."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def plain(value: Any) -> str:
    """A setting as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def command(sweep: Sweep, cell: CellData) -> str:
    """The `lm_eval` command that makes the results of one cell on its own."""
    config = cell.results.get("config") or {}
    args = {name: value for name, value in (config.get("model_args") or {}).items() if name != "edit_ledger"}
    words = ["lm_eval", "--model", "edited_hf", "--model_args", _model_args(args), "--tasks", ",".join(_asked(cell))]
    if (folder := sweep.header["design"].get("include_path")) is not None:
        words += ["--include_path", str(folder)]
    if config.get("batch_size") is not None:
        words += ["--batch_size", str(config["batch_size"])]
    if config.get("limit") is not None:
        words += ["--limit", f"{config['limit']:g}"]
    if cell.results.get("chat_template"):
        words.append("--apply_chat_template")
    if cell.results.get("fewshot_as_multiturn"):
        words.append("--fewshot_as_multiturn")
    return shlex.join([*words, "--output_path", "results", "--log_samples"])


def _model_args(args: Mapping[str, Any]) -> str:
    """`name=value,...`, or JSON where a value is more than a word."""
    words = {name: str(value) for name, value in args.items()}
    if any(not text or set(text) & set(",=[]{}\"' ") for text in words.values()):
        return json.dumps(dict(args), ensure_ascii=False)
    return ",".join(f"{name}={text}" for name, text in words.items())


def _asked(cell: CellData) -> list[str]:
    """The groups that were evaluated, and the tasks of none."""
    children = {child for group in (cell.results.get("group_subtasks") or {}).values() for child in group}
    return [name for name in (*cell.groups(), *cell.tasks()) if name not in children]


def design_yaml(sweep: Sweep) -> str:
    """The design as a YAML file that `lm-eval-edit sweep` takes."""
    design = dict(sweep.header["design"])
    design["models"] = [{**model["args"], "label": model["label"]} for model in design["models"]]
    design["editors"] = [
        {**method["args"], "label": method["label"]}
        | ({"edit_batch_size": method["edit_batch_size"]} if method.get("edit_batch_size") else {})
        for method in design["editors"]
    ]
    told = {"name": sweep.name, "description": sweep.header.get("description") or "", **design}
    return yaml.safe_dump(
        {name: value for name, value in told.items() if value not in (None, "", [], {})},
        sort_keys=False, default_flow_style=None, allow_unicode=True, width=100,
    )  # fmt: skip


def versions(sweep: Sweep) -> list[tuple[str, str]]:
    """(package, version) of every version that any cell recorded."""
    found: dict[tuple[str, str], None] = {}
    for _, cell in sweep.cells():
        said = dict(cell.edit.get("versions") or {})
        for name, key in (("lm_eval", "lm_eval_version"), ("transformers", "transformers_version")):
            if cell.results.get(key):
                said.setdefault(name, cell.results[key])
        found |= dict.fromkeys((name, str(version)) for name, version in said.items())
    return sorted(found)
