"""Sweeps of a few seconds over the demo, run for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval_edit.sweep import checking, engine, folder
from lm_eval_edit.sweep.design import Design
from lm_eval_edit.sweep.parsing import parse_design
from lm_eval_edit.sweep.reading import load_sweep

SMALL = {
    "models": "demo", "editors": "rome", "n_edits": [0, 1, 3], "tasks": ["edithurt_sst2", "edithurt_boolq"], "limit": 6,
    "model_args": {"v_num_grad_steps": 3},
}  # fmt: skip


def small(**changes: Any) -> Design:
    """`SMALL` with some keys replaced."""
    return parse_design(SMALL | changes, "the test")


def sweep(root: Path, share_blocks: float | None = None, **changes: Any) -> engine.Outcome:
    """Run `small(**changes)` in this process."""
    checked = checking.check(small(**changes), folder.SweepFolder(root))
    return engine.run_sweep(checked, device="cpu", progress=False, share_blocks=share_blocks)


def figures(root: Path) -> dict[str, dict]:
    """Path of a cell -> everything in its results that must not depend on when and how it was computed."""
    out = {}
    for _, cell in load_sweep(root).cells():
        results = cell.results
        samples = {file.name.split("_2")[0]: file.read_text() for file in sorted(cell.folder.glob("samples_*.jsonl"))}
        edit = {k: v for k, v in cell.edit.items() if k not in ("seconds_per_edit", "ledger")}
        out[str(cell.folder.relative_to(root))] = {
            "results": results.get("results"), "samples": samples, "edit": edit, "status": cell.status,
            "hashes": results.get("task_hashes"),
        }  # fmt: skip
    return out
