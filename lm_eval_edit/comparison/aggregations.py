"""How the harness turns the values of documents into a task's metric, in a form that can be resampled.

Each aggregation is a statistic of sums: every document adds a few counts, and the metric is a function of the totals.
That holds for a mean (value, 1) as for an F1 (true positives, predicted, gold), and keeps a bootstrap cheap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from lm_eval_edit.comparison.statistics import Statistic
from lm_eval_edit.tasklib.editing import figures as editing_figures
from lm_eval_edit.tasklib.glue import figures as glue_figures
from lm_eval_edit.tasklib.suite import aggregate


@dataclass(frozen=True)
class Aggregation:
    """One aggregation.

    Attributes:
        name: The harness's name for it, or that of the function in the task's YAML.
        counts: Logged values of n documents -> (n, k) float64. Raises TypeError, ValueError or KeyError for values
            that are not of its kind.
        statistic: (b, k) sums -> (b,) values.
        gain: (n, k) counts -> (n,) what each document contributes, so that more is a larger metric.
        silent: (n, k) counts -> (n,) whether a document's output says nothing that counts, so that it makes no errors
            but those of omission; None where silence is no way to fewer errors.
        of_output: Whether it is about what was generated, whose form may be lost, where the task generates anything.
    """

    name: str
    counts: Callable[[Sequence[Any]], np.ndarray]
    statistic: Statistic
    gain: Callable[[np.ndarray], np.ndarray]
    silent: Callable[[np.ndarray], np.ndarray] | None = None
    of_output: bool = True

    @property
    def is_mean(self) -> bool:
        """Whether the metric is the plain mean of the documents' values."""
        return self.name in ("mean", "known_mean", "signed_mean")

    def value(self, counts: np.ndarray) -> float:
        """The metric of all the documents."""
        return float(self.statistic(counts.sum(axis=0, keepdims=True))[0])


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    shares = np.full(len(part), np.nan)
    np.divide(part, whole, out=shares, where=whole != 0)
    return shares


def _perplexity(sums: np.ndarray) -> np.ndarray:
    """Sums of log-likelihoods and of what they are of -> exp(−mean); infinite where that overflows."""
    with np.errstate(over="ignore"):
        perplexities: np.ndarray = np.exp(-_divide(sums[:, 0], sums[:, 1]))
    return perplexities


def _scalars(values: Sequence[Any]) -> np.ndarray:
    if not all(isinstance(value, int | float) for value in values):
        raise TypeError("not numbers")
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], axis=1)


def _pairs(values: Sequence[Any]) -> np.ndarray:
    counts = np.array([(first, second) for first, second in values], dtype=float)
    if not np.isfinite(counts).all():
        raise ValueError("not numbers")
    return counts


def _lists(values: Sequence[Any]) -> np.ndarray:
    """Several right-or-wrongs of one document -> how many are right, how many there are."""
    return np.array([(sum(value), len(value)) for value in values], dtype=float)


def _confusion(values: Sequence[Any]) -> np.ndarray:
    """(gold, predicted) of two classes -> true positive, false positive, false negative, true negative."""
    gold, predicted = _pairs(values).T
    if not (np.isin(gold, (0, 1)).all() and np.isin(predicted, (0, 1)).all()):
        raise ValueError("not two classes")
    return np.stack(
        [gold * predicted, (1 - gold) * predicted, gold * (1 - predicted), (1 - gold) * (1 - predicted)], axis=1
    )


def _binary_f1(sums: np.ndarray) -> np.ndarray:
    tp, fp, fn, _ = sums.T
    scores: np.ndarray = np.nan_to_num(_divide(2 * tp, 2 * tp + fp + fn))
    return scores


def _matthews(sums: np.ndarray) -> np.ndarray:
    tp, fp, fn, tn = sums.T
    below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    coefficients: np.ndarray = np.nan_to_num(_divide(tp * tn - fp * fn, below))
    return coefficients


def _right(counts: np.ndarray) -> np.ndarray:
    right: np.ndarray = counts[:, 0] + counts[:, 3]
    return right


_ALL = (
    Aggregation("mean", _scalars, lambda s: _divide(s[:, 0], s[:, 1]), lambda c: c[:, 0]),
    # The same where documents may have no value; results with such documents are not compared.
    Aggregation("known_mean", _scalars, lambda s: _divide(s[:, 0], s[:, 1]), lambda c: c[:, 0]),
    # The same of values from −1 to 1.
    Aggregation("signed_mean", _scalars, lambda s: _divide(s[:, 0], s[:, 1]), lambda c: c[:, 0]),
    # Log-likelihoods: less negative is a smaller perplexity.
    Aggregation("perplexity", _scalars, _perplexity, lambda c: -c[:, 0]),
    Aggregation("weighted_perplexity", _pairs, _perplexity, lambda c: -c[:, 0]),
    Aggregation("bits_per_byte", _pairs, lambda s: -_divide(s[:, 0], s[:, 1]) / np.log(2), lambda c: -c[:, 0]),
    # IFEval's accuracy over instructions, of which a document has several.
    Aggregation("agg_inst_level_acc", _lists, lambda s: _divide(s[:, 0], s[:, 1]), lambda c: c[:, 0]),
    # Documents of several kinds: (value, 1), or (0, 0) of a document of another kind.
    Aggregation("share_of_kind", _pairs, lambda s: _divide(s[:, 0], s[:, 1]), lambda c: c[:, 0]),
    Aggregation("f1", _confusion, _binary_f1, _right),
    Aggregation("mcc", _confusion, _matthews, _right),
    # (sentence, true positives, predicted, gold): a document does better by having fewer errors of either kind.
    Aggregation(
        "entity_f1",
        lambda values: aggregate.entity_counts(values)[1],
        aggregate.f1,
        lambda c: 2 * c[:, 0] - c[:, 1] - c[:, 2],
        silent=lambda c: c[:, 1] == 0,
    ),
    Aggregation(
        "entity_script",
        lambda values: aggregate.script_counts(values)[1],
        aggregate.mean_ratio,
        lambda c: c[:, : c.shape[1] // 2].sum(axis=1) - c[:, c.shape[1] // 2 :].sum(axis=1),
    ),
    # (label, prediction or -1) of edithurt_glue.
    Aggregation("weighted_f1", glue_figures.table, glue_figures.f1_of, glue_figures.right),
    Aggregation("likelier_f1", glue_figures.table, glue_figures.f1_of, glue_figures.right, of_output=False),
    Aggregation("class_mcc", glue_figures.table, glue_figures.mcc_of, glue_figures.right),
    # (fact, efficacy, paraphrase, neighbourhood success).
    Aggregation(
        "counterfact_score", editing_figures.harmonic_counts, editing_figures.harmonic, lambda c: c[:, :3].sum(axis=1)
    ),
)
#: From 0 to 1 by definition though they are no means; and correlations, from −1 and 0 by chance.
SHARES = (
    "f1", "entity_f1", "entity_script", "agg_inst_level_acc", "counterfact_score", "weighted_f1", "likelier_f1",
    "share_of_kind",
)  # fmt: skip
CORRELATIONS = ("mcc", "class_mcc", "signed_mean")  # and differences of shares: from −1
AGGREGATIONS: Mapping[str, Aggregation] = MappingProxyType({each.name: each for each in _ALL})

# What a metric of the harness is aggregated by where the task does not say.
_BY_METRIC = {
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
}


def declared(config: Mapping[str, Any], metric: str) -> str | None:
    """The name of a metric's aggregation in a task's dumped configuration; None where none is given.

    The harness dumps a function as its source text, a name as it is.
    """
    for entry in config.get("metric_list") or ():
        if entry.get("metric") == metric:
            given = str(entry.get("aggregation") or "")
            found = re.match(r"\s*def (\w+)\(|<function (\w+) at", given)
            return (found[1] or found[2]) if found else given or None
    return None


def find(config: Mapping[str, Any], metric: str, values: Sequence[Any], reported: float | None) -> Aggregation | str:
    """The aggregation that leads from the documents' values to the figure in the results.

    Args:
        config: The task's dumped configuration.
        metric: Its metric.
        values: The logged values of the documents.
        reported: The figure in the results; None leaves it unchecked.

    Returns:
        The aggregation; or, where none of ours gives that figure, the reason why not.
    """
    given = declared(config, metric)
    if given is not None and given not in AGGREGATIONS:
        return f"its aggregation ({given}) is not one that can be recomputed"
    names = (given,) if given else (_BY_METRIC.get(metric), metric, "mean")
    numeric = False
    for name in dict.fromkeys(name for name in names if name is not None and name in AGGREGATIONS):
        found = AGGREGATIONS[name]
        try:
            counts = found.counts(values)
        except (TypeError, ValueError, KeyError):
            continue
        numeric = True
        value = found.value(counts)
        if reported is None or not np.isfinite(value) or np.isclose(value, reported, rtol=1e-6, atol=1e-9):
            return found
    return "the values logged for its documents do not lead to its figure" if numeric else "its values are not numbers"
