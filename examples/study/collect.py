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
from lm_eval_edit.errors import UserError
from lm_eval_edit.sweep.reading import CellData, RowData, load_sweep

from .design import Form, Work

UNEDITED, BEFORE = "unedited", "before"
_OF_THE_DAY = ("date",)


def collect(form: Form, work: Work, results: Path) -> None:
    """Write the cells of all sweeps that are there; the folder then holds nothing else.

    They are written beside it and take its place when they are whole, so that what was there is never lost to nothing.

    Raises:
        UserError: there is no cell, or the folder holds something else than collected cells.
    """
    results = results.resolve()
    only_cells_in(results)
    new, old = (results.with_name(f".{results.name}.{which}") for which in ("new", "old"))
    if old.exists() and not results.exists():  # killed between the two renames below
        old.rename(results)
    for left in (new, old):  # of a collecting that was killed elsewhere
        if left.exists():
            shutil.rmtree(left)
    try:
        _write(form, work, new)
        if results.exists():
            results.rename(old)
        new.rename(results)
    finally:
        if new.exists():
            shutil.rmtree(new)
        if old.exists() and not results.exists():
            old.rename(results)
    if old.exists():
        shutil.rmtree(old)


def only_cells_in(results: Path) -> None:
    """Make sure that nothing else is lost where collected cells replace a folder.

    Raises:
        UserError: it is there, not empty, and holds no collected cells.
    """
    if not results.exists() or (results / "cells.json").is_file():
        return
    inside = sorted(each.name for each in results.iterdir()) if results.is_dir() else [results.name]
    if inside:
        raise UserError(
            f"{results} holds {inside[0]} and no cells.json: collecting the cells would delete what is there. Give "
            f"--results a folder that is new, empty, or holds the study's cells"
        )


def _write(form: Form, work: Work, folder: Path) -> None:
    cells: dict[str, Any] = {}
    timings: dict[str, Any] = {"runs": _runs(work), "cells": {}}
    for part, seed in form.sweeps:
        swept = work.sweep(part, seed)
        if not (swept / "sweep.json").is_file():
            continue
        for row, cell in load_sweep(swept).cells():
            name = f"{part}-seed{seed}/{_name(row, cell)}"
            cells[name] = _known(row, cell, part, seed)
            timings["cells"][name] = cell.record.get("seconds")
            if cell.results_file is not None and cell.status is not None:
                run = load_run(cell.results_file)
                kept = {key: value for key, value in run.results.items() if key not in _OF_THE_DAY}
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                freeze(replace(run, results=kept), folder / f"{name}.json")
    if not any(known["status"] for known in cells.values()):
        raise UserError(f"no cell of the sweeps in {work.folder} is finished: there is nothing to collect")
    prepared = read_json(work.folder / "prepared.json")
    about = {"form": form.name, "identity": form.identity, "data": prepared, "versions": versions()}
    write_json(folder / "cells.json", {"about": about, "cells": cells})
    write_json(folder / "timings.json", timings)


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
    """What each start took that came to its end; of one that was killed nobody wrote it."""
    import json

    file = work.folder / "runs.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
