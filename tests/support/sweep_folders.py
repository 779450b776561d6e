"""Sweep folders written by hand: what `lm-eval-edit sweep` would leave, without a model.

Every document of a task has a fixed difficulty and is right as long as the task's rate is above it, so the same
document is right before and wrong after, and every figure can be computed again from the samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_edit.sweep.design import Design, Row
from lm_eval_edit.sweep.folder import COLLAPSED, DONE, FAILED, Cell, SweepFolder, write_summary
from lm_eval_edit.sweep.parsing import parse_design, read_design
from lm_eval_edit.sweep.reading import load_sweep, summary_rows
from lm_eval_edit.tasklib.suite.catalogue import GROUP, TASKS
from tests.support.results_files import sample

SUITE = [f"edithurt_{name}" for name in TASKS]
EDITING = ["edithurt_efficacy", "edithurt_generalization", "edithurt_locality"]
MISSING = "missing"
#: The unedited model's rate of right answers.
RATES = dict(zip(SUITE, (0.95, 0.9, 0.85, 1.0, 0.8, 0.55, 0.7, 0.98), strict=True))
#: After how many edits one after another a method has done most of its damage, and how well its edits take.
METHODS = {"rome": (12, 0.97), "memit": (60, 0.9), "random": (25, 0.05), "kn": (2, 0.3), "ft": (8, 1.0)}


def write_sweep(
    root: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    documents: int = 20,
    states: Mapping[tuple[str, int], str] | None = None,
    left_out: Mapping[str, Mapping[int, str]] | None = None,
) -> Path:
    """Write a sweep's folder.

    Args:
        changes: Keys of a design, over ROME on the demo model, 0 to 20 edits, the suite.
        preset: Take this preset's design instead.
        documents: For each task.
        states: (method's label, n_edits) -> collapsed, failed or missing; every other cell is done.
        left_out: Row name -> checkpoint -> why it could not be reached; as in a run, the row then has it no more.

    Returns:
        root.
    """
    design = read_design(preset, changes or {}) if preset else parse_design(
        {"models": "demo", "editors": "rome", "n_edits": [0, 5, 10, 15, 20], "name": "synthetic"} | dict(changes or {}),
        "the test",
    )  # fmt: skip
    folder, states = SweepFolder(root), states or {}
    rows = [_reaching(row, (left_out or {}).get(row.name, {})) for row in design.rows()]
    editing = [task for name in design.tasks if "editing" in name for task in EDITING]
    folder.claim(design, rows, about_schedule=[name for name in design.tasks if "editing" in name])
    for model in design.models:
        folder.write(Cell(model.label, None, 0, design.tasks), {"status": DONE, "reason": None}, *_unedited(documents))
    for row in rows:
        for n in ([0] if editing else []) + list(row.checkpoints):
            tasks = editing if n == 0 else SUITE + editing
            cell = Cell(row.model.label, row, n, tuple(tasks))
            state = states.get((row.method.label, n), DONE)
            if state == COLLAPSED:
                folder.write(cell, {"status": state, "reason": "perplexity 5.1e+06, unedited 12.3"})
            elif state == FAILED:
                folder.write(cell, {"status": state, "reason": "edithurt_sst2: RuntimeError: out of memory"})
            elif state == DONE:
                folder.write(cell, {"status": state, "reason": None}, *_cell(design, row, n, tasks, documents))
    write_summary(root, summary_rows(load_sweep(root)))
    return root


def _reaching(row: Row, left_out: Mapping[int, str]) -> Row:
    return replace(row, checkpoints=tuple(n for n in row.checkpoints if n not in left_out), left_out=left_out)


def write_mixed_sweep(root: Path) -> Path:
    """Write a sweep of three methods, two seeds, the suite and edit quality, with cells in every state."""
    changes = {
        "editors": ["rome", "memit", "ft"], "edit_seeds": [0, 1], "n_edits": [0, 5, 20],
        "tasks": ["edithurt_suite", "edithurt_editing"],
    }  # fmt: skip
    states = {("memit", 5): FAILED, ("memit", 20): COLLAPSED, ("ft", 20): MISSING}
    return write_sweep(root, changes, states=states, left_out={"ft-demo-seed1": {20: "too few facts"}})


def write_cells(root: Path, cells: Mapping[int, Mapping[str, Sequence[dict]] | str], **changes: Any) -> Path:
    """Write a sweep's folder of one row whose cells hold given samples.

    Args:
        cells: n_edits -> task -> samples, or the status of a cell that has none; 0 is the unedited model.
        changes: Keys of the design.

    Returns:
        root.
    """
    counts = [n for n in cells if n]
    given = {"models": "demo", "editors": "rome", "n_edits": counts, "name": "by_hand", "tasks": ["t"]} | changes
    design = parse_design(given, "the test")
    folder, row = SweepFolder(root), design.rows()[0]
    folder.claim(design, [row])
    for n, tasks in cells.items():
        cell = Cell("demo", row if n else None, n, design.tasks)
        if isinstance(tasks, str):
            folder.write(cell, {"status": tasks, "reason": "told why"})
        else:
            results = _results(tasks, {"editor": "rome" if n else "none", "n_edits": n, "edit_seed": 0})
            folder.write(cell, {"status": DONE, "reason": None}, results, tasks)
    return root


def _unedited(documents: int) -> tuple[dict, dict]:
    samples = {task: _samples(task, RATES[task], documents, 0) for task in SUITE}
    edit = {"editor": "none", "n_edits": 0, "weights_fingerprint": "0" * 64, "versions": {"torch": "2.13.0"}}
    return _results(samples, edit), samples


def _cell(design: Design, row: Row, n: int, tasks: Sequence[str], documents: int) -> tuple[dict, dict]:
    half, takes = METHODS.get(row.method.editor, (20, 0.9))
    # A larger batch does the same damage with fewer operations; another seed's facts do a little more or less.
    effort = row.operations(n) ** 0.7 * (n**0.3 if n else 1) * (1 + 0.15 * (row.edit_seed or 0))
    left = math.exp(-((effort / half) ** 1.3))
    rates = dict(zip(EDITING, (takes if n else 0.02, 0.8 * takes if n else 0.02, 0.3 + 0.6 * left), strict=True))
    for i, task in enumerate(SUITE):
        rates[task] = RATES[task] * left ** (0.4 + 0.25 * i)
    samples = {task: _samples(task, rates[task], min(n, documents) or 10 if task in EDITING else documents, n)
               for task in tasks}  # fmt: skip
    return _results(samples, _edit(row, n, takes, left)), samples


def _samples(task: str, rate: float, documents: int, n: int) -> list[dict]:
    rng = np.random.default_rng(sum(map(ord, task)))
    difficulty = (rng.permutation(documents) + 0.5) / documents
    lines = []
    for i in range(documents):
        right = difficulty[i] < rate
        shared = task in ("edithurt_samsum", "edithurt_conll2003")
        score = float(np.clip(rate + 0.2 * (difficulty[i] - 0.5), 0, 1)) if shared else float(right)
        metrics = {"score": score, "script": round(0.9 * score, 6), "valid": float(right or difficulty[i] < 2 * rate)}
        if task in EDITING:
            metrics = {"score": score, "em": score, "token_acc": score, "prob_success": score}
        doc = {"text": f'Document {i} of {task}: <b>no markup</b> & "quotes".', "source": "demo"}
        answer = " the right answer" if right else f" the the the {n}" if n else " a wrong answer"
        lines.append(sample(i, metrics, doc=doc, prompt=f"Q {task} {i}?", answer=answer))
    return lines


def _results(samples: Mapping[str, Sequence[Mapping[str, Any]]], edit: Mapping[str, Any]) -> dict[str, Any]:
    results: dict[str, Any] = {"results": {}, "groups": {}, "group_subtasks": {}, "configs": {}, "versions": {},
        "n-shot": {}, "higher_is_better": {}, "n-samples": {},
        "config": {"model": "edited_hf", "model_args": {"pretrained": "demo"}, "limit": None, "edit": dict(edit)},
        "lm_eval_version": "0.4.13", "transformers_version": "5.23.0", "model_source": "edited_hf",
        "model_name": "demo", "chat_template_sha": None, "date": 1790000000.0}  # fmt: skip
    for task, lines in samples.items():
        figures: dict[str, Any] = {"name": task, "alias": task, "sample_len": len(lines)}
        names = lines[0]["metrics"]
        for name in names:
            values = [line[name] for line in lines]
            figures[f"{name},none"] = float(np.mean(values))
            # One document alone has no standard error; lm-eval writes it as NaN.
            stderr = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
            figures[f"{name}_stderr,none"] = stderr
        results["results"][task] = figures
        results["configs"][task] = {
            "task": task, "output_type": "generate_until", "num_fewshot": 0, "repeats": 1,
            "generation_kwargs": {"until": [], "max_gen_toks": 5},
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names],
        }  # fmt: skip
        results["versions"][task], results["n-shot"][task] = 1.0, 0
        results["higher_is_better"][task] = dict.fromkeys(names, True)
        results["n-samples"][task] = {"original": len(lines), "effective": len(lines)}
    for group, members in ((GROUP, SUITE), ("edithurt_editing", EDITING)):
        if set(members) <= samples.keys():
            figures = {"name": group, "alias": group, "sample_len": sum(len(samples[task]) for task in members)}
            for name in ("score", "script", "valid") if group == GROUP else ("score",):
                parts = [results["results"][task] for task in members]
                figures[f"{name},none"] = float(np.mean([part[f"{name},none"] for part in parts]))
                spread = sum(part[f"{name}_stderr,none"] ** 2 for part in parts)
                figures[f"{name}_stderr,none"] = math.sqrt(spread) / len(parts)
            results["results"][group] = results["groups"][group] = figures
            results["group_subtasks"][group] = list(members)
    return json.loads(json.dumps(results))


def _edit(row: Row, n: int, takes: float, left: float) -> dict[str, Any]:
    layers = (3, 4, 5) if row.method.editor == "memit" else (5,)
    growth = {layer: 0.02 * n**0.8 * (1 + 0.3 * layer) for layer in layers}
    retained = takes * (0.4 + 0.6 * left) if n else 0.02
    return {
        "editor": row.method.editor, "n_edits": n, "edit_batch_size": max(n, 1) if row.at_once else row.edit_batch_size,
        "weights_fingerprint": f"{n:064x}", "unedited_fingerprint": "0" * 64, "edit_seed": row.edit_seed,
        "edit_offset": 0, "options": {"layers": list(layers)}, "preset": "demo", "layers": list(layers),
        "dataset": {"source": row.dataset or "demo", "sha256": "f" * 64, "usable": 1000, "skipped": []},
        "fact_ids": [f"demo-{i:04d}" for i in range(n)],
        "parameters": {
            f"transformer.h.{layer}.mlp.c_proj.weight": {
                "delta_norm": 18 * value, "weight_norm": 18.0, "relative_norm": value, "delta_max": value / 10,
                "rounding_loss": 0.0,
            } for layer, value in growth.items()
        } if n else {},
        "after_each_edit": [{"n": 1, "token_acc": takes, "em": takes}] * row.operations(n),
        "guards": {"weights_changed": True, "weights_finite": True, "answers_changed": n, "answers_changed_ok": True,
                   "retained": {"n": n, "token_acc": retained, "em": retained}},
        "seconds_per_edit": 0.5,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "lm_eval": "0.4.13", "lm_eval_edit": "0.1.0"},
    }  # fmt: skip
