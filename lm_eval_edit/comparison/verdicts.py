"""One metric before and after, and what is to be said of it: worse, better, no regression, or not to be told.

The figures are explained in `docs/statistics.md`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lm_eval_edit.comparison import statistics
from lm_eval_edit.comparison.changed_documents import Flips
from lm_eval_edit.comparison.floors import NEAR_ZERO
from lm_eval_edit.comparison.pairing import Pair
from lm_eval_edit.comparison.runs import Run
from lm_eval_edit.comparison.statistics import Estimate
from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.measures import ABILITY

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
        bounded: Whether the figure is on a scale with two ends, as shares are; perplexities, log-probabilities are not.
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
    bounded: bool = True

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


def recovered(
    base: float, edited: float, higher_is_better: bool, difference: Estimate, why_floor: str | None
) -> tuple[float | None, str | None]:
    """The recovery, or None and why it is not defined: a share of next to nothing says nothing."""
    whole = base if higher_is_better else edited
    if why_floor is not None:
        return None, f"the base is at floor ({why_floor})"
    if whole < 0:
        return None, f"{whole:.3g} is no amount of which a share could be left"
    if whole == 0 or (math.isfinite(difference.most) and whole < NEAR_ZERO):
        return None, f"{'the base' if higher_is_better else 'the edited figure'} of {whole:.3g} is too near 0"
    return statistics.recovery(base, edited, higher_is_better), None


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
