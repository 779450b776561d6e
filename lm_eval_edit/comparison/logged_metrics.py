"""The metrics of one task under one filter, from the values logged for its documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_eval_edit.comparison import aggregations
from lm_eval_edit.comparison.aggregations import Aggregation
from lm_eval_edit.tasklib import measures

# From 0 to 1 by definition, Matthews' correlation from −1.
_SHARES = ("f1", "entity_f1", "entity_script", "agg_inst_level_acc", "counterfact_score", "share_of_kind")


@dataclass(frozen=True)
class Metric:
    """One metric of one task and filter.

    Attributes:
        name: As in the results, without the filter.
        aggregation: How the documents' values become the figure.
        counts: (n, k) what each document adds.
        higher_is_better: The task's word; True where it has none.
        direction_known: Whether the task has a word on that.
        chance: What guessing scores; None for metrics that have no such floor: unbounded, or better where lower.
    """

    name: str
    aggregation: Aggregation
    counts: np.ndarray
    higher_is_better: bool = True
    direction_known: bool = True
    chance: float | None = None

    @property
    def value(self) -> float:
        """The figure."""
        return self.aggregation.value(self.counts)

    @property
    def sign(self) -> int:
        """1 where higher is better, else −1."""
        return 1 if self.higher_is_better else -1

    @property
    def is_binary(self) -> bool:
        """Whether each document is simply right or wrong."""
        return self.aggregation.is_mean and bool(np.isin(self.counts[:, 0], (0, 1)).all())

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and largest figure there can be; infinite where that is not known.

        A mean whose values all lie between 0 and 1 is taken for a share.
        """
        if self.aggregation.name == "mcc":
            return -1.0, 1.0
        if self.aggregation.name in _SHARES:
            return 0.0, 1.0
        values = self.counts[:, 0]
        if self.aggregation.is_mean and len(values) and values.min() >= 0 and values.max() <= 1:
            return 0.0, 1.0
        return -np.inf, np.inf


def with_chance(metric: Metric, *, is_headline: bool, stated: float | None, counted: float | None) -> Metric:
    """The metric with what guessing scores in it.

    Args:
        stated: The task's word: of its headline metric, and of each that is right or wrong.
        counted: From the number of choices: of metrics that are right or wrong.
    """
    if not metric.higher_is_better or not np.isfinite(metric.bounds).all():
        return metric
    chance = 0.0
    if metric.name != measures.FORMAT and (metric.is_binary or (is_headline and stated is not None)):
        chance = stated if stated is not None else counted or 0.0
    return replace(metric, chance=chance)


def read_metrics(
    values: Mapping[str, Sequence[Any]], config: Mapping[str, Any], figures: Mapping[str, Any],
    better: Mapping[str, Any], order: np.ndarray,
) -> tuple[dict[str, Metric], dict[str, str]]:  # fmt: skip
    """The metrics that can be recomputed, in the order of the task's YAML, and for each of the others why not.

    Args:
        values: Metric -> the value of each document, None where it has none.
        config: The task's dumped configuration.
        figures: Metric -> its figure in the results under this filter.
        better: Metric -> whether higher is better, where known.
        order: (n,) the order in which documents are wanted.
    """
    metrics: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    listed = [entry.get("metric") for entry in config.get("metric_list") or ()]
    for name in sorted(values, key=lambda name: listed.index(name) if name in listed else len(listed)):
        if name.endswith("_stderr") and name.removesuffix("_stderr") in values:
            continue  # the task's own way to a standard error, not a metric
        if name == measures.NOTHING:
            left_out[name] = "the run was told to score nothing (--predict_only)"
            continue
        if without := sum(value is None for value in values[name]):
            left_out[name] = f"{without} documents have no value"
            continue
        figure = figures.get(name)
        found = aggregations.find(config, name, values[name], figure if isinstance(figure, int | float) else None)
        if isinstance(found, str):
            left_out[name] = found
        else:
            said = better.get(name)
            counts = found.counts(values[name])[order]
            metrics[name] = Metric(name, found, counts, said is not False, isinstance(said, bool))
    for name in figures:
        if name not in values and not name.endswith("_stderr"):
            left_out[name] = "its values are not in the samples"
    return metrics, left_out
