"""Means over tasks with a paired interval of their own, and over edit seeds with the spread between them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from lm_eval_edit.comparison.combined import between_runs, cluster_covariance, weighted_mean
from lm_eval_edit.comparison.pairing import Pair
from lm_eval_edit.comparison.runs import Run
from lm_eval_edit.comparison.statistics import Estimate
from lm_eval_edit.comparison.verdicts import INCONCLUSIVE, Comparison, Row, Settings, judge, recovered
from lm_eval_edit.tasklib.measures import ABILITY, EDIT_QUALITY

OVERALL, OF_EDITS = "mean of tasks", "mean of edit quality"
ABLE = "mean of tasks not at floor"
KINDS = {ABILITY: OVERALL, EDIT_QUALITY: OF_EDITS}

Pairs = Mapping[tuple[str, str], Pair]


def group_rows(base: Run, rows: Sequence[Row], pairs: Pairs, settings: Settings) -> Iterator[Row]:
    """The means that the harness reports for groups, and the mean of all headline metrics where no group has it.

    A group's weights (by task or by document) are not in the results; those are taken that give its reported figure. A
    group whose tasks were not all compared, or whose figure neither gives, is left out; so is one that mixes tasks
    about the edits with others, since a gain of the one would hide a loss of the other. Perplexities and
    log-probabilities are on no scale with scores and enter no mean of them. Where some tasks are at floor (`floors`),
    the mean of those that are not follows.
    """
    headlines = {(row.task, row.metric, row.filter): row for row in rows if row.headline}
    kinds = {kind: on_one_scale([row for row in headlines.values() if row.measures == kind]) for kind in KINDS}
    covered: set[str] = set()
    for group, members, weights in _reported(base, rows):
        if len({row.measures for row in members}) > 1:
            continue
        yield _mean(group, members, weights, pairs, settings)
        names = {(row.task, row.metric, row.filter) for row in members}
        covered |= {kind for kind, own in kinds.items() if own and all(_key(row) in names for row in own)}
    for kind, own in kinds.items():
        if kind not in covered and _can_be_averaged(own):
            yield _mean(KINDS[kind], own, [1 / len(own)] * len(own), pairs, settings)
    able = [row for row in kinds[ABILITY] if row.floor is None]
    if able and len(able) < len(kinds[ABILITY]) and _can_be_averaged(able, at_least=1):
        yield _mean(ABLE, able, [1 / len(able)] * len(able), pairs, settings)


def _key(row: Row) -> tuple[str, str, str]:
    return row.task, row.metric, row.filter


def on_one_scale(rows: Sequence[Row]) -> list[Row]:
    """The rows whose figures are bounded, as scores are; all of them where none is."""
    return [row for row in rows if row.bounded] or list(rows)


def _can_be_averaged(rows: Sequence[Row], at_least: int = 2) -> bool:
    scales = {(row.higher_is_better, row.bounded, None if row.bounded else row.metric) for row in rows}
    return len(rows) >= at_least and len(scales) == 1


def _reported(base: Run, rows: Sequence[Row]) -> Iterator[tuple[str, list[Row], list[float]]]:
    """The harness's groups that were compared as a whole: name, members, weights."""
    children = base.results.get("group_subtasks") or {}
    for group, figures in (base.results.get("groups") or {}).items():
        leaves = list(dict.fromkeys(_leaves(group, children)))
        for key, figure in figures.items():
            metric, _, filter_name = key.partition(",")
            members = [row for row in rows if (row.metric, row.filter) == (metric, filter_name) and row.task in leaves]
            if {row.task for row in members} != set(leaves) or not isinstance(figure, int | float):
                continue
            weights = _weights(members, figure)
            if weights is not None:
                yield group, members, weights


def mixed_groups(base: Run, rows: Sequence[Row]) -> list[str]:
    """The groups that are left out because they average edit quality with ability."""
    found = (group for group, members, _ in _reported(base, rows) if len({row.measures for row in members}) > 1)
    return list(dict.fromkeys(found))


def _leaves(group: str, children: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for child in children.get(group, ()):
        if child in children:
            yield from _leaves(child, children)
        else:
            yield child


def _weights(members: Sequence[Row], figure: float) -> list[float] | None:
    total = sum(row.n for row in members)
    for weights in ([1 / len(members)] * len(members), [row.n / total for row in members]):
        value = sum(w * row.base for w, row in zip(weights, members, strict=True))
        if math.isclose(value, figure, rel_tol=1e-6, abs_tol=1e-9):
            return weights
    return None


def _shared(members: Sequence[Row], pairs: Pairs) -> tuple[np.ndarray, int] | None:
    """What members that are all about edited facts share of them; None where they are taken as independent."""
    found = [pairs[row.task, row.filter] for row in members]
    facts = [pair.edited.facts if pair.edited.facts is not None else pair.base.facts for pair in found]
    metrics = [
        (p.base.metrics[row.metric], p.edited.metrics[row.metric]) for p, row in zip(found, members, strict=True)
    ]
    known = [fact for fact in facts if fact is not None]
    if len(known) < len(facts) or not all(before.aggregation.is_mean for before, _ in metrics):
        return None
    changes = [after.counts[:, 0] - before.counts[:, 0] for before, after in metrics]
    return cluster_covariance(changes, known)


def _mean(name: str, members: Sequence[Row], weights: Sequence[float], pairs: Pairs, settings: Settings) -> Row:
    differences = [row.difference for row in members]
    shared = _shared(members, pairs)
    difference, p = weighted_mean(differences, weights, alpha=settings.alpha, shared=shared)
    base, edited = (float(np.dot(weights, [getattr(row, side) for row in members])) for side in ("base", "edited"))
    names = {row.metric for row in members}
    at_floor = tuple(row.task for row in members if row.floor is not None)
    why = f"all {len(members)} tasks are at floor" if len(at_floor) == len(members) else None
    better = members[0].higher_is_better
    recovery, undefined = recovered(base, edited, better, difference, why)
    row = Row(
        task=name,
        filter=members[0].filter if len({row.filter for row in members}) == 1 else "",
        metric=names.pop() if len(names) == 1 else "headline",
        headline=all(row.headline for row in members),
        higher_is_better=better,
        n=sum(row.n for row in members),
        clusters=sum(row.clusters for row in members),
        cluster_field=None,
        base=base,
        edited=edited,
        recovery=recovery,
        difference=difference,
        p=p,
        test="t",
        p_holm=p,
        detectable=math.inf,
        delta=settings.delta,
        verdict=INCONCLUSIVE,
        identical=all(row.identical for row in members),
        flips=None,
        members={row.task: w for row, w in zip(members, weights, strict=True)},
        measures=members[0].measures,
        floor=why,
        at_floor=at_floor,
        recovery_undefined=undefined,
        bounded=all(row.bounded for row in members),
    )
    return judge(row, settings.alpha, 1)


# --------------------------------------------------------------------------------------------------------------- seeds


@dataclass(frozen=True)
class SeedRow:
    """One metric over several runs of one method that differ by their edit seed.

    Attributes:
        method: Editor and number of edits.
        task, filter, metric: What.
        runs: How many runs.
        difference: Mean difference to the base over the runs.
        between: Student's interval of the runs' spread: other facts, or another order of them.
        within: The interval of a typical single run: other documents. The mean of the runs' variances is taken, as if
            their errors were the same, so that it never claims too much.
    """

    method: str
    task: str
    filter: str
    metric: str
    runs: int
    difference: float
    between: tuple[float, float]
    within: tuple[float, float]

    def json(self) -> dict[str, Any]:
        """As the schema has it."""
        intervals = {
            name: [value if math.isfinite(value) else None for value in getattr(self, name)]
            for name in ("between", "within")
        }
        return dataclasses.asdict(self) | intervals


def method_of(run: Run) -> str | None:
    """What two runs have in common that differ by the facts' seed alone; None for models that we did not edit."""
    edit = run.edit
    if not edit.get("n_edits"):
        return None
    same = {key: edit.get(key) for key in ("editor", "n_edits", "edit_batch_size", "options", "layers")}
    same["dataset"] = (edit.get("dataset") or {}).get("sha256")
    same["model"] = edit.get("unedited_fingerprint")
    return json.dumps(same, sort_keys=True)


def seed_rows(comparisons: Sequence[Comparison], alpha: float) -> list[SeedRow]:
    """A row for each metric of each method that was run with at least two seeds."""
    methods: dict[str, dict[tuple[Any, Any], Comparison]] = {}
    for each in comparisons:
        if (method := method_of(each.edited)) is not None:
            edit = each.edited.edit
            methods.setdefault(method, {}).setdefault((edit.get("edit_seed"), edit.get("edit_offset")), each)
    found = []
    for by_seed in methods.values():
        runs = list(by_seed.values())
        if len(runs) < 2:
            continue
        edit = runs[0].edited.edit
        name = f"{edit['editor']} n={edit['n_edits']}"
        for rows in zip(*((*run.rows, *run.groups) for run in runs), strict=True):
            most, least = max(row.difference.most for row in rows), min(row.difference.least for row in rows)
            between = between_runs([row.difference.value for row in rows], alpha=alpha).within(most, least)
            within = _typical([row.difference for row in rows], between.value, alpha)
            first = rows[0]
            what = (name, first.task, first.filter, first.metric, len(rows))
            found.append(SeedRow(*what, between.value, (between.low, between.high), within))
    return found


def _typical(differences: Sequence[Estimate], mean: float, alpha: float) -> tuple[float, float]:
    stderr = math.sqrt(sum(d.stderr**2 for d in differences) / len(differences))
    half = float(stats.norm.isf(alpha / 2)) * stderr
    most, least = max(d.most for d in differences), min(d.least for d in differences)
    return max(mean - half, least), min(mean + half, most)
