"""Is it worse, by how much, and are we sure? One run of the harness against others of the same documents.

The figures are explained in `docs/statistics.md`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lm_eval_edit.comparison import statistics
from lm_eval_edit.comparison.changed_documents import Flips, flips_of, gains, is_binary, won
from lm_eval_edit.comparison.floors import floor
from lm_eval_edit.comparison.group_means import group_rows
from lm_eval_edit.comparison.logged_metrics import Metric
from lm_eval_edit.comparison.pairing import Pair, pair_runs
from lm_eval_edit.comparison.runs import Run
from lm_eval_edit.comparison.statistics import Estimate
from lm_eval_edit.comparison.verdicts import (
    IMPROVED,
    INCONCLUSIVE,
    REGRESSED,
    UNHARMED,
    Comparison,
    Row,
    Settings,
    judge,
    recovered,
)
from lm_eval_edit.errors import UserError, nearest

__all__ = [
    "IMPROVED", "INCONCLUSIVE", "REGRESSED", "UNHARMED", "Comparison", "Flips", "Row", "Settings", "bounds",
    "compare_runs", "gains", "is_binary", "judge", "recovered", "reported", "won",
]  # fmt: skip


def compare_runs(base: Run, edited: Run, settings: Settings | None = None) -> Comparison:
    """Compare two runs.

    Raises:
        PairingError: they are not measurements of the same documents.
        UserError: a task or metric in the settings that is not there.
    """
    settings = settings or Settings()
    pairs = pair_runs(base, edited, settings.tasks, settings.headlines)
    _check_metrics(pairs, settings)
    headlines, without = _headlines(pairs, settings)
    rows = [
        _row(pair, *key, metric, headlines.get(key) == metric, settings)
        for key, pair in pairs.items()
        for metric in pair.metrics
        if settings.metrics is None or metric in settings.metrics
    ]
    rows = _judge(rows, settings)
    return Comparison(base, edited, pairs, tuple(rows), tuple(group_rows(base, rows, pairs, settings)), without)


def _headlines(
    pairs: Mapping[tuple[str, str], Pair], settings: Settings
) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """(task, filter) -> the headline metric of the task's first filter, and task -> why it has none.

    A metric that the settings name is that of the first filter that has it.
    """
    found: dict[tuple[str, str], str] = {}
    without: dict[str, str] = {}
    for task in dict.fromkeys(task for task, _ in pairs):
        own = {key: pair for key, pair in pairs.items() if key[0] == task}
        first, pair = next(iter(own.items()))
        name = settings.headlines.get(task)
        if name is not None:
            found[next(key for key, pair in own.items() if name in pair.metrics)] = name
        elif (name := pair.headline) in pair.metrics:
            found[first] = name
        else:
            without[task] = f"{name} cannot be compared: {pair.why_not(name)}" if name else "is none: it has no metric"
    return found, without


def reported(comparison: Comparison, task: str) -> str:
    """The figures that both results files report for a task whose headline metric is not compared."""
    key, pair = next((key, pair) for key, pair in comparison.pairs.items() if key[0] == task)
    figures = [
        ((run.results.get("results") or {}).get(task) or {}).get(f"{pair.headline},{key[1]}")
        for run in (comparison.base, comparison.edited)
    ]
    return " (reported: {} → {})".format(*figures) if None not in figures else ""


def _check_metrics(pairs: Mapping[tuple[str, str], Pair], settings: Settings) -> None:
    known = {metric for pair in pairs.values() for metric in pair.metrics}
    for metric in settings.metrics or ():
        if metric not in known:
            raise UserError(f"no metric {metric} in the results; there are {', '.join(sorted(known))}")
    for task, metric in settings.headlines.items():
        metrics = [name for (of, _), pair in pairs.items() if of == task for name in pair.metrics]
        reasons = [pair.why_not(metric) for (of, _), pair in pairs.items() if of == task]
        if metric not in metrics and any(metric in pair.base.left_out for (of, _), pair in pairs.items() if of == task):
            raise UserError(f"{task}: {metric} cannot be compared: {'; '.join(dict.fromkeys(reasons))}")
        if metric not in metrics:
            raise UserError(f"{task} has no metric {metric}.{nearest(metric, metrics)} There are {', '.join(metrics)}")
    if not known:
        why = [
            f"{key[0]}: {name}: {reason}" for key, pair in pairs.items() for name, reason in pair.base.left_out.items()
        ]
        raise UserError("the runs have no metric that can be compared" + "".join(f"\n  - {each}" for each in why))


def _row(pair: Pair, task: str, filter_name: str, name: str, headline: bool, settings: Settings) -> Row:
    before, after = pair.base.metrics[name], pair.edited.metrics[name]
    flips = flips_of(pair, name)
    difference, p, test = _difference(pair, before, after, settings)
    why_floor = floor(pair.base, name, settings.alpha)
    recovery, undefined = recovered(before.value, after.value, before.higher_is_better, difference, why_floor)
    changed = bool((before.counts != after.counts).any())
    return Row(
        task=task,
        filter=filter_name,
        metric=name,
        headline=headline,
        higher_is_better=before.higher_is_better,
        n=len(pair.base),
        clusters=pair.n_clusters,
        cluster_field=pair.base.cluster_field,
        base=before.value,
        edited=after.value,
        recovery=recovery,
        difference=difference,
        p=p,
        test=test,
        p_holm=p,
        detectable=math.inf,
        delta=settings.limits.get(task, settings.delta),
        verdict=INCONCLUSIVE,
        identical=not changed and not bool(pair.answers_changed.any()),
        flips=flips,
        measures=pair.base.measures,
        floor=why_floor,
        recovery_undefined=undefined,
        bounded=all(map(math.isfinite, bounds(before, after))),
    )


def _difference(pair: Pair, before: Metric, after: Metric, settings: Settings) -> tuple[Estimate, float, str]:
    """The difference with its interval, its p, and the test's name."""
    alpha, seed, clusters = settings.alpha, settings.seed, pair.base.clusters
    least, most = _possible_difference(before, after)
    if before.aggregation.is_mean:
        changes = after.counts[:, 0] - before.counts[:, 0]
        binary = is_binary(before, after)
        if binary and not pair.clustered:
            down, up = int((changes < 0).sum()), int((changes > 0).sum())
            estimate = statistics.proportion_difference(down, up, len(changes), alpha=alpha)
            return estimate.within(most, least), statistics.mcnemar(down, up), "McNemar"
        p = statistics.sign_flip(changes, clusters, seed=seed)
        estimate = statistics.mean_difference(changes, clusters, alpha=alpha, binary=binary)
        return _possible(estimate, before, after, pair, alpha), p, "sign flip"
    a, b = (statistics.cluster_sums(metric.counts, clusters) for metric in (before, after))
    p = statistics.swap_test(a, b, before.aggregation.statistic, seed=seed)
    estimate = statistics.bootstrap_difference(a, b, before.aggregation.statistic, alpha=alpha, seed=seed)
    return _possible(estimate, before, after, pair, alpha), p, "swap"


def _possible(estimate: Estimate, before: Metric, after: Metric, pair: Pair, alpha: float) -> Estimate:
    """The interval, not closed to nothing where few documents changed, nor wider than base and metric allow."""
    changed = (before.counts != after.counts).any(axis=1)
    n_changed = len(np.unique(pair.base.clusters[changed]))
    low, high = bounds(before, after)
    scale = high - low if math.isfinite(high - low) else float(np.ptp(before.aggregation.gain(before.counts))) or 1.0
    least, most = _possible_difference(before, after)
    return statistics.few_changed(estimate, n_changed, pair.n_clusters, scale, alpha=alpha).within(most, least)


def bounds(before: Metric, after: Metric) -> tuple[float, float]:
    """The smallest and the largest figure there can be, on both sides; infinite where that is not known."""
    (low, high), (other_low, other_high) = before.bounds, after.bounds
    return min(low, other_low), max(high, other_high)


def _possible_difference(before: Metric, after: Metric) -> tuple[float, float]:
    """What this base leaves possible: a score of 0.02 cannot fall by more than 0.02."""
    low, high = bounds(before, after)
    return low - before.value, high - before.value


def _judge(rows: Sequence[Row], settings: Settings) -> list[Row]:
    """Holm's correction over each family, then the detectable drop and the verdict of each row."""
    families: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        families.setdefault("headline" if row.headline else f"metric {row.metric}", []).append(i)
    judged = list(rows)
    for members in families.values():
        adjusted = statistics.holm([rows[i].p for i in members])
        for i, p_holm in zip(members, adjusted, strict=True):
            judged[i] = judge(dataclasses.replace(rows[i], p_holm=float(p_holm)), settings.alpha, len(members))
    return judged
