"""Evaluations through the harness, with our tasks alone: indexing its own takes seconds."""

from __future__ import annotations

import lm_eval
from lm_eval.tasks import TaskManager

from lm_eval_edit.harness.our_tasks import tasks_dir


def evaluate(lm, metadata, tasks, **options):
    """As `simple_evaluate`, without bootstraps; `metadata` as the command line's `--metadata`."""
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False, metadata=metadata)
    return lm_eval.simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)
