"""Evaluations through the harness, with our tasks alone: indexing its own takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from lm_eval_edit.harness.our_tasks import tasks_dir

EDITING = ("edithurt_editing", "edithurt_counterfact")


def evaluate(lm: Any, metadata: Mapping[str, Any], tasks: Sequence[str] = EDITING, **options: Any) -> dict[str, Any]:
    """As `simple_evaluate`, with few bootstraps; `metadata` as the command line's `--metadata`."""
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False, metadata=dict(metadata))
    options = {"bootstrap_iters": 10} | options
    return lm_eval.simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, **options)


def figures(results, task):
    """The metrics of a task."""
    values = results["results"][f"edithurt_{task}"]
    names = [key.removesuffix(",none") for key in values if key.endswith(",none") and "_stderr" not in key]
    return {name: values[f"{name},none"] for name in names}
