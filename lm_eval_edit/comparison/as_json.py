"""Comparisons as JSON: what `schemas/compare.schema.json` describes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_edit import __version__
from lm_eval_edit.comparison.runs import Run
from lm_eval_edit.comparison.verdicts import Comparison, Row, Settings

REVISION = 2  # of both schemas: 2 added fields to 1, and changed none


def row_json(row: Row) -> dict[str, Any]:
    """A row with the names of the schema; infinite and undefined figures are null."""
    d = row.difference
    return {
        "task": row.task,
        "filter": row.filter,
        "metric": row.metric,
        "headline": row.headline,
        "higher_is_better": row.higher_is_better,
        "n": row.n,
        "clusters": row.clusters,
        "cluster_field": row.cluster_field,
        "base": row.base,
        "edited": row.edited,
        "difference": d.value,
        "recovery": row.recovery,
        "interval": [finite(d.low), finite(d.high)],
        "interval_method": d.method,
        "stderr": finite(d.stderr),
        "p": row.p,
        "p_holm": row.p_holm,
        "test": row.test,
        "detectable_drop": finite(row.detectable),
        "delta": row.delta,
        "verdict": row.verdict,
        "identical": row.identical,
        "flips": dataclasses.asdict(row.flips) if row.flips else None,
        "members": dict(row.members) if row.members else None,
        "measures": row.measures,
        "floor": row.floor,
        "at_floor": list(row.at_floor),
        "recovery_undefined": row.recovery_undefined,
    }


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def run_json(run: Run) -> dict[str, Any]:
    """What identifies a run."""
    edit = run.edit
    return {
        "label": run.label,
        "path": str(run.path),
        "model": run.results.get("model_name"),
        "lm_eval_version": run.results.get("lm_eval_version"),
        "editor": edit.get("editor"),
        "n_edits": edit.get("n_edits"),
        "edit_seed": edit.get("edit_seed"),
        "weights_fingerprint": edit.get("weights_fingerprint"),
    }


def to_json(comparisons: Sequence[Comparison], settings: Settings, extra: Mapping[str, Any]) -> dict[str, Any]:
    """All comparisons with one base, as `schemas/compare.schema.json` describes.

    Args:
        extra: The blocks `seeds` and `noise`.
    """
    return {
        "schema": "lm-eval-edit compare 1",
        "revision": REVISION,
        "version": __version__,
        "alpha": settings.alpha,
        "delta": settings.delta,
        "seed": settings.seed,
        "base": run_json(comparisons[0].base),
        "comparisons": [
            {
                "edited": run_json(each.edited),
                "rows": [row_json(row) for row in each.rows],
                "groups": [row_json(row) for row in each.groups],
                "left_out": left_out(each),
                "without_headline": dict(each.without_headline),
            }
            for each in comparisons
        ],
        **extra,
    }


def left_out(comparison: Comparison) -> dict[str, list[str]]:
    """The metrics left out, as "metric: reason" -> tasks, so that nothing goes missing silently."""
    found: dict[str, list[str]] = {}
    for (task, _), pair in comparison.pairs.items():
        for metric in dict.fromkeys((*pair.base.left_out, *pair.edited.left_out)):
            if metric not in pair.metrics:
                found.setdefault(f"{metric}: {pair.why_not(metric)}", []).append(task)
    return {reason: sorted(set(tasks)) for reason, tasks in found.items()}
