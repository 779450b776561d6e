"""Whether a task can show damage at all: not if the unedited model could not do it (docs/statistics.md, "At floor")."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from lm_eval_edit.comparison import statistics
from lm_eval_edit.comparison.aggregations import CORRELATIONS
from lm_eval_edit.comparison.logged_metrics import Metric
from lm_eval_edit.comparison.runs import Run, TaskSamples
from lm_eval_edit.tasklib.measures import EDIT_QUALITY, FORMAT

AT_FLOOR = "at floor: cannot show damage"
NEAR_ZERO = (
    0.05  # of a figure from 0 to 1: below it one point up or down is a fifth of it, and a share of it says nothing
)


def floor(samples: TaskSamples, name: str, alpha: float = 0.05) -> str | None:
    """Why no damage can show in a metric of the unedited model; None where it can.

    Args:
        samples: The unedited model's documents of one task.
        name: The metric.
        alpha: Level at which the score must be above chance (one-sided), and at which a loss of all of it could be
            called significant.
    """
    metric = samples.metrics[name]
    if metric.chance is None or samples.measures == EDIT_QUALITY or not metric.higher_is_better:
        return None
    if not math.isfinite(value := metric.value):
        return None
    if value <= metric.chance:
        return f"{value:.3g}, at or below chance ({metric.chance:.3g})" if metric.chance else f"{value:.3g}"
    if metric.chance == 0 and metric.aggregation.name not in CORRELATIONS:
        return _too_few_right(samples, metric, alpha)
    low = _lower_bound(samples, metric, alpha)
    return None if low > metric.chance else f"{value:.3g}, not shown to be above chance ({metric.chance:.3g})"


def _too_few_right(samples: TaskSamples, metric: Metric, alpha: float) -> str | None:
    """Where chance is 0, whatever is right is above it; but so few may be that losing them all would show nothing.

    k changes in one direction have p = 2 · 0.5^k, so fewer than log2(2/α) can never be significant. Where those are
    half of the documents or more, the documents are too few, not the ability.
    """
    sums = statistics.cluster_sums(metric.counts, samples.clusters)
    with np.errstate(all="ignore"):
        right = int((metric.aggregation.statistic(sums) > 0).sum())
    needed = math.ceil(math.log2(2 / alpha) - 1e-9)
    if right >= needed or 2 * right >= len(sums):
        return None
    return f"{metric.value:.3g}, only {right} of {len(sums)} {'documents' if _alone(samples) else 'clusters'} score"


def _alone(samples: TaskSamples) -> bool:
    return samples.cluster_field is None


def _lower_bound(samples: TaskSamples, metric: Metric, alpha: float) -> float:
    """One-sided lower confidence bound of the score at level α.

    Clopper and Pearson's for 0/1 values of independent documents, else Student's over clusters; φ − z/√m for Matthews'
    correlation φ of m clusters (m φ² is chi-squared); the figure itself for other corpus-level metrics.
    """
    values, m = metric.counts[:, 0], int(samples.clusters.max(initial=-1)) + 1
    if metric.aggregation.name in CORRELATIONS:
        return metric.value - float(stats.norm.isf(alpha)) / math.sqrt(m)
    if not metric.aggregation.is_mean:
        return metric.value
    if _alone(samples) and np.isin(values, (0, 1)).all():
        right = int(values.sum())
        return float(stats.beta.ppf(alpha, right, len(values) - right + 1)) if right else 0.0
    return statistics.mean_difference(values, samples.clusters, alpha=2 * alpha).low


def floors(run: Run, alpha: float = 0.05, metric: str | None = None) -> dict[str, str]:
    """Task -> why its headline metric, or another one, cannot show damage, of an unedited model's run."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for samples in run.samples.values():
        name = metric or samples.headline
        if name is not None and samples.task not in seen and name in samples.metrics:
            seen.add(samples.task)
            if why := floor(samples, name, alpha):
                found[samples.task] = why
    return found


def lost_formats(run: Run) -> dict[str, float]:
    """Task -> share of outputs in the asked form, where below half: the form is measured then, not the ability."""
    shares = {
        samples.task: samples.metrics[FORMAT].value
        for samples in run.samples.values()
        if FORMAT in samples.metrics and samples.metrics[FORMAT].aggregation.is_mean
    }
    return {task: share for task, share in shares.items() if share < 0.5}


def format_advice(results: Mapping[str, object], lost: Mapping[str, float]) -> str | None:
    """What to say of an unedited model that does not answer in the asked form; None where nothing is to be said.

    Args:
        results: The results file: a chat template that was applied is recorded there.
        lost: As `lost_formats` gives it.
    """
    if not lost:
        return None
    tasks = ", ".join(f"{task} (valid {share:.2g})" for task, share in lost.items())
    said = f"the unedited model seldom answers in the asked form: {tasks}"
    if results.get("chat_template_sha") or results.get("chat_template"):
        return said
    return f"{said}; if it is a chat model, run lm_eval with --apply_chat_template"
