"""Several differences as one: the mean over the tasks of a suite, and over runs that differ by their seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from lm_eval_edit.comparison.statistics import Estimate, mean_difference


def weighted_mean(
    parts: Sequence[Estimate],
    weights: Sequence[float],
    *,
    alpha: float = 0.05,
    shared: tuple[np.ndarray, int] | None = None,
) -> tuple[Estimate, float]:
    """A weighted mean of differences, such as the mean over the tasks of a suite.

    Args:
        parts: The tasks' differences.
        weights: Summing to 1.
        shared: Covariance (k, k) of the k differences and the number m of clusters they share (`cluster_covariance`);
            None for independent differences.

    Returns:
        The mean with a t interval, degrees of freedom by Welch and Satterthwaite, or m − 1; and its two-sided p.
    """
    mean, p = _weighted_mean(parts, weights, alpha, shared)
    most, least = (float(np.dot(weights, [getattr(part, end) for part in parts])) for end in ("most", "least"))
    return mean.within(most, least), p


def _weighted_mean(
    parts: Sequence[Estimate], weights: Sequence[float], alpha: float, shared: tuple[np.ndarray, int] | None
) -> tuple[Estimate, float]:
    w = np.asarray(weights, dtype=float)
    variances = np.array([part.stderr**2 for part in parts]) * w**2
    value, variance = float(w @ [part.value for part in parts]), float(variances.sum())
    if shared is not None:
        covariance = shared[0]
        joint = float(w @ covariance @ w)
        # The parts' own variances may be larger than the diagonal, to stay open where nothing changed: they are kept.
        variance = max(variance + joint - float(w**2 @ np.diag(covariance)), joint)
    if not np.isfinite(variance) or (shared is not None and shared[1] < 2):
        return Estimate(value, np.inf, -np.inf, np.inf, 0.0, "one cluster"), 1.0
    if variance == 0:
        return Estimate(value, 0.0, value, value, np.inf, "t"), 1.0 if value == 0 else 0.0
    spread = float((variances**2 / [part.df for part in parts]).sum())
    df = variance**2 / spread if spread > 0 else np.inf
    df = df if shared is None else shared[1] - 1
    stderr = float(np.sqrt(variance))
    half = float(stats.t.isf(alpha / 2, df)) * stderr
    p = float(2 * stats.t.sf(abs(value) / stderr, df))
    return Estimate(value, stderr, value - half, value + half, df, "t"), p


def cluster_covariance(differences: Sequence[np.ndarray], clusters: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """Cluster-robust covariance (k, k) of k means of paired differences over the same clusters, and their number.

    A cluster moves each mean by the sum of its documents' deviations from that mean; one that a mean has no documents
    of does not move it.

    Args:
        differences: For each mean (n_i,) of its documents.
        clusters: For each mean (n_i,) what its documents' clusters are called, in all means alike.
    """
    names, index = np.unique(np.concatenate(clusters), return_inverse=True)
    m, influences, start = len(names), [], 0
    for values in differences:
        own = index[start : start + len(values)]
        influences.append(np.bincount(own, (values - values.mean()) / len(values), minlength=m))
        start += len(values)
    stacked = np.stack(influences)  # (k, m)
    return stacked @ stacked.T * (m / max(m - 1, 1)), m


def between_runs(values: Sequence[float], *, alpha: float = 0.05) -> Estimate:
    """Mean over runs that differ by their seed alone, with Student's interval of their spread."""
    return mean_difference(np.asarray(values, dtype=float), np.arange(len(values)), alpha=alpha)
