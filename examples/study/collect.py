"""The sweeps' cells without texts: what each document scored with its hashes, and what is known of the edits.

A cell becomes a frozen baseline (`lm_eval_edit.comparison.baseline`), `SWEEP/CELL.json`; `cells.json` tells of each how
it stands, how far the weights moved and how well the fixed text is predicted; `timings.json` what it took. Nothing in
them depends on when or where the study was run, but for `timings.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval_edit._support.files import read_json, write_json
from lm_eval_edit._support.versions import versions
from lm_eval_edit.comparison.baseline import freeze
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.sweep.reading import CellData, RowData, load_sweep

from .design import Form, Work

UNEDITED, BEFORE = "unedited", "before"
_OF_THE_DAY = ("date",)


def collect(form: Form, work: Work, results: Path) -> None:
    """Write the cells of all sweeps that are there; the folder then holds nothing else."""
    if results.exists():
        shutil.rmtree(results)
    cells: dict[str, Any] = {}
    timings: dict[str, Any] = {"runs": _runs(work), "cells": {}}
    for part, seed in form.sweeps:
        folder = work.sweep(part, seed)
        if not (folder / "sweep.json").is_file():
            continue
        for row, cell in load_sweep(folder).cells():
            name = f"{part}-seed{seed}/{_name(row, cell)}"
            cells[name] = _known(row, cell, part, seed)
            timings["cells"][name] = cell.record.get("seconds")
            if cell.results_file is not None and cell.status is not None:
                run = load_run(cell.results_file)
                kept = {key: value for key, value in run.results.items() if key not in _OF_THE_DAY}
                (results / name).parent.mkdir(parents=True, exist_ok=True)
                freeze(replace(run, results=kept), results / f"{name}.json")
    prepared = read_json(work.folder / "prepared.json")
    about = {"form": form.name, "identity": form.identity, "data": prepared, "versions": versions()}
    write_json(results / "cells.json", {"about": about, "cells": cells})
    write_json(results / "timings.json", timings)


def _name(row: RowData | None, cell: CellData) -> str:
    if row is None:
        return UNEDITED
    return f"{row.method}-{cell.n_edits:05d}" if cell.n_edits else f"{row.method}-{BEFORE}"


def _known(row: RowData | None, cell: CellData, part: str, seed: int) -> dict[str, Any]:
    parameters = cell.edit.get("parameters") or {}
    guards = cell.edit.get("guards") or {}
    return {
        "part": part,
        "seed": seed,
        "method": None if row is None else row.method,
        "n_edits": cell.n_edits,
        "status": cell.status,
        "reason": cell.reason,
        "perplexity": cell.record.get("perplexity"),
        "moved": _moved(parameters) if cell.n_edits else None,
        "retained": _figures(guards.get("retained")),
    }


def _moved(parameters: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Norms over all weights that were edited."""
    return {
        which: sum(each[which] ** 2 for each in parameters.values()) ** 0.5 for which in ("delta_norm", "weight_norm")
    }


def _figures(found: Mapping[str, Any] | None) -> dict[str, float] | None:
    return None if found is None else {name: found[name] for name in ("em", "n") if name in found}


def _runs(work: Work) -> list[Any]:
    import json

    file = work.folder / "runs.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
