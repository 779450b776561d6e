"""Is it worse, by how much, and are we sure? One run of the harness against others of the same documents.

The figures are explained in `docs/statistics.md`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_edit import statistics
from lm_eval_edit.errors import UserError, nearest
from lm_eval_edit.pairing import Pair, pair_runs
from lm_eval_edit.results import Metric, Run
from lm_eval_edit.statistics import Estimate

_SHARES = ("f1", "entity_f1", "entity_script", "agg_inst_level_acc", "counterfact_score")  # from 0 to 1 by definition
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
class Flips:
    """How many documents changed, each way.

    Attributes:
        worse, better: For 0/1 metrics right → wrong and wrong → right; for others by the document's own value.
        lost_format, lost_ability: Of `worse`: those whose output is no longer valid (the asked form is lost), and those
            still valid (the form is kept, the answer is not); None for tasks without a metric `valid`.
        answers: Documents whose answer changed at all.
    """

    worse: int
    better: int
    lost_format: int | None
    lost_ability: int | None
    answers: int


@dataclass(frozen=True)
class Row:
    """One metric of one task (or of a group), before and after.

    Attributes:
        task, filter, metric: What; `task` is the group's name in rows of groups.
        headline: Whether this is the task's headline metric: the one groups, gates and the main family of tests use.
        n, clusters: Documents, and how many independent clusters they form.
        cluster_field: What the documents of a cluster share; None without clusters.
        base, edited: The figures.
        recovery: edited / base (base / edited where lower is better); None over 0.
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

    @property
    def gain(self) -> Estimate:
        """The difference in the direction in which more is better."""
        d = self.difference
        return d if self.higher_is_better else dataclasses.replace(d, value=-d.value, low=-d.high, high=-d.low)


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        base, edited: What was compared.
        pairs: (task, filter) -> the paired documents.
        rows: One for each task, filter and metric.
        groups: One for each group mean; the last is that of all headline metrics where no group covers them.
    """

    base: Run
    edited: Run
    pairs: Mapping[tuple[str, str], Pair]
    rows: tuple[Row, ...]
    groups: tuple[Row, ...]


def compare_runs(base: Run, edited: Run, settings: Settings | None = None) -> Comparison:
    """Compare two runs.

    Raises:
        PairingError: they are not measurements of the same documents.
        UserError: a task or metric in the settings that is not there.
    """
    from lm_eval_edit.group_means import group_rows  # it needs the rows of this module

    settings = settings or Settings()
    pairs = pair_runs(base, edited, settings.tasks)
    _check_metrics(pairs, settings)
    rows = []
    seen: set[str] = set()
    for (task, filter_name), pair in pairs.items():
        headline = settings.headlines.get(task, pair.metrics[0] if pair.metrics else None)
        for metric in pair.metrics:
            is_headline = metric == headline and task not in seen
            if is_headline:
                seen.add(task)
            if settings.metrics is None or metric in settings.metrics:
                rows.append(_row(pair, task, filter_name, metric, is_headline, settings))
    rows = _judge(rows, settings)
    return Comparison(base, edited, pairs, tuple(rows), tuple(group_rows(base, rows, pairs, settings)))


def _check_metrics(pairs: Mapping[tuple[str, str], Pair], settings: Settings) -> None:
    known = {metric for pair in pairs.values() for metric in pair.metrics}
    for metric in settings.metrics or ():
        if metric not in known:
            raise UserError(f"no metric {metric} in the results; there are {', '.join(sorted(known))}")
    for task, metric in settings.headlines.items():
        metrics = [name for (of, _), pair in pairs.items() if of == task for name in pair.metrics]
        if metric not in metrics:
            raise UserError(f"{task} has no metric {metric}.{nearest(metric, metrics)} There are {', '.join(metrics)}")
    if not known:
        raise UserError("the runs have no metric that can be compared")


def _row(pair: Pair, task: str, filter_name: str, name: str, headline: bool, settings: Settings) -> Row:
    before, after = pair.base.metrics[name], pair.edited.metrics[name]
    flips = _flips(pair, name)
    difference, p, test = _difference(pair, before, after, flips, settings)
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
        recovery=statistics.recovery(before.value, after.value, before.higher_is_better),
        difference=difference,
        p=p,
        test=test,
        p_holm=p,
        detectable=math.inf,
        delta=settings.limits.get(task, settings.delta),
        verdict=INCONCLUSIVE,
        identical=not changed and not bool(pair.answers_changed.any()),
        flips=flips,
    )


def gains(before: Metric, after: Metric) -> np.ndarray:
    """(n,) how much better each document did, whichever way the metric points."""
    change = after.aggregation.gain(after.counts) - before.aggregation.gain(before.counts)
    return change * before.sign


def is_binary(before: Metric, after: Metric) -> bool:
    """Whether each document is simply right or wrong."""
    values = np.concatenate([before.counts[:, 0], after.counts[:, 0]])
    return before.aggregation.is_mean and bool(np.isin(values, (0, 1)).all())


def _flips(pair: Pair, name: str) -> Flips:
    moved = gains(pair.base.metrics[name], pair.edited.metrics[name])
    worse = moved < 0
    lost_format = None
    if name != "valid" and (valid := pair.edited.metrics.get("valid")) is not None and valid.aggregation.is_mean:
        lost_format = int((worse & (valid.counts[:, 0] == 0)).sum())
    n_worse = int(worse.sum())
    return Flips(
        worse=n_worse,
        better=int((moved > 0).sum()),
        lost_format=lost_format,
        lost_ability=None if lost_format is None else n_worse - lost_format,
        answers=int(pair.answers_changed.sum()),
    )


def _difference(
    pair: Pair, before: Metric, after: Metric, flips: Flips, settings: Settings
) -> tuple[Estimate, float, str]:
    """The difference with its interval, its p, and the test's name."""
    alpha, seed, clusters = settings.alpha, settings.seed, pair.base.clusters
    if before.aggregation.is_mean:
        changes = after.counts[:, 0] - before.counts[:, 0]
        binary = is_binary(before, after)
        if binary and not pair.clustered:
            low_good = before.sign < 0  # worse counts documents that went up where lower is better
            down, up = (flips.better, flips.worse) if low_good else (flips.worse, flips.better)
            estimate = statistics.proportion_difference(down, up, len(changes), alpha=alpha)
            return estimate, statistics.mcnemar(flips.worse, flips.better), "McNemar"
        p = statistics.sign_flip(changes, clusters, seed=seed)
        estimate = statistics.mean_difference(changes, clusters, alpha=alpha, binary=binary)
        return _possible(estimate, before, after, pair, alpha), p, "sign flip"
    a, b = (statistics.cluster_sums(metric.counts, clusters) for metric in (before, after))
    p = statistics.swap_test(a, b, before.aggregation.statistic, seed=seed)
    estimate = statistics.bootstrap_difference(a, b, before.aggregation.statistic, alpha=alpha, seed=seed)
    return _possible(estimate, before, after, pair, alpha), p, "swap"


def _possible(estimate: Estimate, before: Metric, after: Metric, pair: Pair, alpha: float) -> Estimate:
    """The interval, not closed to nothing where few documents changed, nor wider than the metric allows."""
    changed = (before.counts != after.counts).any(axis=1)
    n_changed = len(np.unique(pair.base.clusters[changed]))
    most = _most(before, after)
    scale = most if math.isfinite(most) else float(np.ptp(before.aggregation.gain(before.counts))) or 1.0
    return statistics.few_changed(estimate, n_changed, pair.n_clusters, scale, alpha=alpha).within(most)


def _most(before: Metric, after: Metric) -> float:
    """The most that a metric, and each document's part in it, can differ; infinite where that is not known."""
    values = np.concatenate([before.counts[:, 0], after.counts[:, 0]])
    if before.aggregation.name in _SHARES or (before.aggregation.is_mean and values.min() >= 0 and values.max() <= 1):
        return 1.0
    return 2.0 if before.aggregation.name == "mcc" else math.inf


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
    if row.identical:
        verdict = UNHARMED
    elif row.p_holm <= alpha and gain.value > 0:
        verdict = IMPROVED
    elif gain.low >= -row.delta:
        verdict = UNHARMED
    elif row.p_holm <= alpha and gain.value < 0:
        verdict = REGRESSED
    else:
        verdict = INCONCLUSIVE
    return dataclasses.replace(row, detectable=detectable, verdict=verdict)
