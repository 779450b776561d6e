"""Is it worse, by how much, and are we sure? One run of the harness against others of the same documents.

The figures are explained in `docs/statistics.md`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_edit.comparison import statistics
from lm_eval_edit.comparison.changed_documents import Flips, flips_of, gains, is_binary, won
from lm_eval_edit.comparison.floors import NEAR_ZERO, floor
from lm_eval_edit.comparison.logged_metrics import Metric
from lm_eval_edit.comparison.pairing import Pair, pair_runs
from lm_eval_edit.comparison.results import Run
from lm_eval_edit.comparison.statistics import Estimate
from lm_eval_edit.errors import UserError, nearest
from lm_eval_edit.tasklib.measures import ABILITY

__all__ = [
    "IMPROVED", "INCONCLUSIVE", "REGRESSED", "UNHARMED", "Comparison", "Flips", "Row", "Settings", "bounds",
    "compare_runs", "gains", "is_binary", "judge", "recovered", "reported", "won",
]  # fmt: skip

REGRESSED, IMPROVED, UNHARMED, INCONCLUSIVE = "regressed", "improved", "no regression", "inconclusive"


@dataclass(frozen=True)
class Settings:
    """How to compare.

    Attributes:
        alpha: Level of the tests, for a whole family under Holm's correction; intervals are at 1 − alpha.
        delta: The drop that may be tolerated, in the metric's own units.
        seed: Of the permutations and bootstraps.
        tasks: The tasks; None for all.
        metrics: The metrics; None for all.
        headlines: Task -> the metric to take for its headline, instead of the first in its YAML.
        limits: Task -> its own tolerated drop.
    """

    alpha: float = 0.05
    delta: float = 0.02
    seed: int = 0
    tasks: Sequence[str] | None = None
    metrics: Sequence[str] | None = None
    headlines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError(f"alpha={self.alpha}: want a level between 0 and 1, such as 0.05")
        for delta in (self.delta, *self.limits.values()):
            if not (math.isfinite(delta) and delta >= 0):
                raise UserError(f"{delta}: want a tolerated drop of at least 0, such as 0.02")


@dataclass(frozen=True)
class Row:
    """One metric of one task (or of a group), before and after.

    Attributes:
        task, filter, metric: What; `task` is the group's name in rows of groups.
        headline: Whether this is the task's headline metric: the one groups, gates and the main family of tests use.
        n, clusters: Documents, and how many independent clusters they form.
        cluster_field: What the documents of a cluster share; None without clusters.
        base, edited: The figures.
        recovery: edited / base (base / edited where lower is better); None where it is not defined.
        difference: edited − base, with its interval.
        p, test: Two-sided p of "nothing but chance", and the test it is of.
        p_holm: p adjusted for the family: the headline metrics of all tasks, or the metrics of one name.
        detectable: The smallest drop that would have been called significant with a probability of 80 %; infinite
            where none would.
        delta: The tolerated drop.
        verdict: One of `regressed`, `improved`, `no regression`, `inconclusive`.
        identical: Whether every document was answered the same and scored the same.
        flips: Counts of changed documents; None for groups.
        members: For groups: the tasks, with their weights.
        measures: `ability` or `edit_quality`, as the task says; a group is of tasks of one kind.
        floor: Why the unedited model's score leaves no damage to be shown; None where it can be shown.
        at_floor: For groups: the tasks of which that is so.
        recovery_undefined: Why there is no recovery; None where there is one.
    """

    task: str
    filter: str
    metric: str
    headline: bool
    higher_is_better: bool
    n: int
    clusters: int
    cluster_field: str | None
    base: float
    edited: float
    recovery: float | None
    difference: Estimate
    p: float
    test: str
    p_holm: float
    detectable: float
    delta: float
    verdict: str
    identical: bool
    flips: Flips | None
    members: Mapping[str, float] | None = None
    measures: str = ABILITY
    floor: str | None = None
    at_floor: tuple[str, ...] = ()
    recovery_undefined: str | None = None

    @property
    def gain(self) -> Estimate:
        """The difference in the direction in which more is better."""
        return self.difference if self.higher_is_better else self.difference.reversed()


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        base, edited: What was compared.
        pairs: (task, filter) -> the paired documents.
        rows: One for each task, filter and metric.
        groups: One for each group mean, then that of all headline metrics of a kind where no group covers them, and
            that of the tasks that are not at floor where some are.
        without_headline: Task -> why its headline metric is not compared. No other metric takes its place.
    """

    base: Run
    edited: Run
    pairs: Mapping[tuple[str, str], Pair]
    rows: tuple[Row, ...]
    groups: tuple[Row, ...]
    without_headline: Mapping[str, str] = dataclasses.field(default_factory=dict)


def compare_runs(base: Run, edited: Run, settings: Settings | None = None) -> Comparison:
    """Compare two runs.

    Raises:
        PairingError: they are not measurements of the same documents.
        UserError: a task or metric in the settings that is not there.
    """
    from lm_eval_edit.comparison.group_means import group_rows  # it needs the rows of this module

    settings = settings or Settings()
    pairs = pair_runs(base, edited, settings.tasks)
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
    )


def recovered(
    base: float, edited: float, higher_is_better: bool, difference: Estimate, why_floor: str | None
) -> tuple[float | None, str | None]:
    """The recovery, or None and why it is not defined: a share of next to nothing says nothing."""
    whole = base if higher_is_better else edited
    if why_floor is not None:
        return None, f"the base is at floor ({why_floor})"
    if whole <= 0 or (math.isfinite(difference.most) and whole < NEAR_ZERO):
        return None, f"{'the base' if higher_is_better else 'the edited figure'} of {whole:.3g} is too near 0"
    return statistics.recovery(base, edited, higher_is_better), None


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


def judge(row: Row, alpha: float, tests: int) -> Row:
    """The row with its detectable drop and its verdict.

    Args:
        row: Everything else in place.
        alpha: Level of the family.
        tests: Size of the family.
    """
    detectable = statistics.detectable_drop(row.difference.stderr, alpha=alpha, tests=tests)
    if row.test == "McNemar":
        detectable = max(detectable, statistics.detectable_share(row.n, alpha=alpha, tests=tests))
    gain = row.gain
    if detectable > -gain.least:  # more than there is to lose
        detectable = math.inf
    if row.identical:
        verdict = UNHARMED
    elif row.p_holm <= alpha and gain.value > 0:
        verdict = IMPROVED
    elif gain.low >= -row.delta:
        verdict = UNHARMED if row.floor is None else INCONCLUSIVE  # of nothing, nothing can be lost
    elif row.p_holm <= alpha and gain.value < 0:
        verdict = REGRESSED
    else:
        verdict = INCONCLUSIVE
    return dataclasses.replace(row, detectable=detectable, verdict=verdict)
