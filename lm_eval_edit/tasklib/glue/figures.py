"""Corpus-level metrics of labels and predictions, and their standard errors by a bootstrap over documents.

A figure is of pairs (label, predicted label), the latter −1 where there is none; a standard error is of (item, label,
predicted label): in several processes documents come in another order, and the bootstrap must draw the same ones. Every
figure is a function of the 4 × 5 table of how often which label met which prediction, so that it can be resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_eval_edit.tasklib.bootstrap import Statistic, cluster_bootstrap

LABELS = 4  # the most that a task has
NONE = -1  # a prediction that is no label: a class of its own, with no support

Pairs = Sequence[Sequence[int]]
Triples = Sequence[Sequence[int]]


def table(pairs: Pairs) -> np.ndarray:
    """(label, prediction) of n documents -> (n, 20): one 1 each, at 5 label + prediction + 1.

    Raises:
        ValueError: something that is no label, or no prediction.
    """
    labels, predicted = np.array([(label, predicted) for label, predicted in pairs], dtype=float).reshape(-1, 2).T
    if not (np.isin(labels, range(LABELS)).all() and np.isin(predicted, range(NONE, LABELS)).all()):
        raise ValueError("not labels and predictions")
    counts = np.zeros((len(labels), LABELS * (LABELS + 1)))
    counts[np.arange(len(labels)), (labels * (LABELS + 1) + predicted + 1).astype(int)] = 1
    return counts


def _parts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(b, 20) tables -> hits (b, 4) of each label, (b, 5) labels and (b, 5) predictions of each class, −1 first."""
    tables = sums.reshape(-1, LABELS, LABELS + 1)
    hits = np.stack([tables[:, label, label + 1] for label in range(LABELS)], axis=1)
    labels = np.concatenate([np.zeros((len(tables), 1)), tables.sum(axis=2)], axis=1)
    return hits, labels, tables.sum(axis=1)


def right(counts: np.ndarray) -> np.ndarray:
    """(n, 20) -> (n,) whether the prediction is the label."""
    hits: np.ndarray = _parts(counts)[0].sum(axis=1)
    return hits


def f1_of(sums: np.ndarray) -> np.ndarray:
    """(b, 20) tables -> (b,) F1 of each label, weighted by how many documents have it (scikit-learn's `weighted`)."""
    hits, labels, predictions = _parts(sums)
    either = labels[:, 1:] + predictions[:, 1:]
    each = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
    scores: np.ndarray = (each * labels[:, 1:]).sum(axis=1) / np.maximum(labels.sum(axis=1), 1)
    return scores


def mcc_of(sums: np.ndarray) -> np.ndarray:
    """(b, 20) tables -> (b,) Matthews' correlation of several classes (Gorodkin 2004); 0 where a side is constant."""
    hits, labels, predictions = _parts(sums)
    n = labels.sum(axis=1)
    both = hits.sum(axis=1) * n - (labels * predictions).sum(axis=1)
    below = np.sqrt((n**2 - (labels**2).sum(axis=1)) * (n**2 - (predictions**2).sum(axis=1)))
    coefficients: np.ndarray = np.divide(both, below, out=np.zeros_like(both), where=below > 0)
    return coefficients


def _bootstrap(items: Triples, statistic: Statistic) -> float:
    return cluster_bootstrap([item for item, _, _ in items], table([pair for _, *pair in items]), statistic)


def weighted_f1(pairs: Pairs) -> float:
    """The weighted F1 of all documents."""
    return float(f1_of(table(pairs).sum(axis=0, keepdims=True))[0])


def weighted_f1_stderr(items: Triples) -> float:
    """Standard error of `weighted_f1`."""
    return _bootstrap(items, f1_of)


def likelier_f1(pairs: Pairs) -> float:
    """The weighted F1 of the likelier label words. A name of its own tells that no output was read for it."""
    return weighted_f1(pairs)


def likelier_f1_stderr(items: Triples) -> float:
    """Standard error of `likelier_f1`."""
    return weighted_f1_stderr(items)


def class_mcc(pairs: Pairs) -> float:
    """Matthews' correlation of all documents."""
    return float(mcc_of(table(pairs).sum(axis=0, keepdims=True))[0])


def class_mcc_stderr(items: Triples) -> float:
    """Standard error of `class_mcc`."""
    return _bootstrap(items, mcc_of)


def count(items: Sequence[int]) -> int:
    """How many documents are marked."""
    return int(sum(items))
