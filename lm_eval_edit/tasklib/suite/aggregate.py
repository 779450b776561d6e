"""Corpus-level metrics and their standard errors.

The harness knows the standard error of a mean. For the named-entity metrics, ratios of sums over the corpus, this
module has its own: a bootstrap over sentences (`bootstrap.py`). The four documents of a sentence move together, because
their outputs are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_eval_edit.tasklib.bootstrap import cluster_bootstrap
from lm_eval_edit.tasklib.suite.prompts import ENTITY_NAMES


def f1(sums: np.ndarray) -> np.ndarray:
    """(b, 3) true positives, predicted, gold -> (b,) F1; 0 where nothing was predicted and nothing is gold."""
    tp, either = sums[:, 0], sums[:, 1] + sums[:, 2]
    return np.divide(2 * tp, either, out=np.zeros_like(tp), where=either > 0)


def mean_ratio(sums: np.ndarray) -> np.ndarray:
    """(b, 2 T) hits of the T types, then asked -> (b,) mean of hits/asked over the types that were asked at all."""
    hits, asked = np.split(sums, 2, axis=1)  # (b, T) each
    ratios = np.divide(hits, asked, out=np.zeros_like(hits), where=asked > 0)
    return ratios.sum(axis=1) / np.maximum((asked > 0).sum(axis=1), 1)


def entity_counts(items: Sequence[Sequence]) -> tuple[list[int], np.ndarray]:
    """(sentence, tp, predicted, gold) of each document -> clusters, (n, 3) counts."""
    return [item[0] for item in items], np.array([item[1:] for item in items], dtype=float)


def script_counts(items: Sequence[Sequence]) -> tuple[list[int], np.ndarray]:
    """(sentence, type, hits, asked) of each document -> clusters, (n, 2 T) counts: hits of each type, then asked."""
    order = {name: i for i, name in enumerate(ENTITY_NAMES)}
    counts = np.zeros((len(items), 2 * len(order)))
    for row, (_, entity_type, hits, asked) in zip(counts, items, strict=True):
        row[order[entity_type]], row[order[entity_type] + len(order)] = hits, asked
    return [item[0] for item in items], counts


def entity_f1(items: Sequence[Sequence]) -> float:
    """Micro F1 over all sentences and types. Items: (sentence, true positives, predicted, gold)."""
    return float(f1(entity_counts(items)[1].sum(axis=0, keepdims=True))[0])


def entity_f1_stderr(items: Sequence[Sequence]) -> float:
    """Standard error of `entity_f1`, by a bootstrap over sentences."""
    return cluster_bootstrap(*entity_counts(items), f1)


def entity_script(items: Sequence[Sequence]) -> float:
    """Mean over entity types of hits/asked, as in the paper's script. Items: (sentence, type, hits, asked).

    A type that was never asked is left out of the mean (the script would divide by zero).
    """
    return float(mean_ratio(script_counts(items)[1].sum(axis=0, keepdims=True))[0])


def entity_script_stderr(items: Sequence[Sequence]) -> float:
    """Standard error of `entity_script`, by a bootstrap over sentences."""
    return cluster_bootstrap(*script_counts(items), mean_ratio)


def entity_valid_stderr(items: Sequence[Sequence]) -> float:
    """Standard error of the share of valid outputs, by a bootstrap over sentences. Items: (sentence, valid)."""
    return cluster_bootstrap(
        [item[0] for item in items],
        np.array([[item[1], 1] for item in items], dtype=float),
        lambda sums: sums[:, 0] / sums[:, 1],
    )


def count(items: Sequence[int]) -> int:
    """How many documents are marked."""
    return int(sum(items))


def share(items: Sequence[float]) -> float:
    """The share of documents that are marked, of those of which it is known."""
    return float(sum(items) / len(items))
