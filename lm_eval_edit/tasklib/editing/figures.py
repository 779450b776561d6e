"""The documents' values of the edit-quality tasks -> figures and their standard errors.

Documents of one fact are not independent, so every standard error is a bootstrap over facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_eval_edit.tasklib.bootstrap import cluster_bootstrap


def known_mean(values: Sequence[float | None]) -> float:
    """Mean of the values that are known; NaN where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


def signed_mean(values: Sequence[float | None]) -> float:
    """`known_mean` of values from −1 to 1: by how much one probability is larger than another."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


def known_mean_stderr(items: Sequence[tuple[str, float | None]]) -> float:
    """Standard error of `known_mean`, by a bootstrap over facts. Items: (fact, value)."""
    known = [(fact, value) for fact, value in items if value is not None]
    counts = np.array([(value, 1.0) for _, value in known], dtype=float).reshape(-1, 2)
    return cluster_bootstrap([fact for fact, _ in known], counts, lambda sums: sums[:, 0] / sums[:, 1])


def share_of_kind(items: Sequence[tuple[float, float]]) -> float:
    """Of documents of several kinds: the share of one. Items: (value, 1), or (0, 0) of a document of another kind."""
    number = sum(one for _, one in items)
    return sum(value for value, _ in items) / number if number else float("nan")


def harmonic_counts(items: Sequence[Sequence[Any]]) -> np.ndarray:
    """(fact, ES, PS, NS) of each document -> (n, 4): the three, and one."""
    return np.array([(*item[1:], 1.0) for item in items], dtype=float)


def harmonic(sums: np.ndarray) -> np.ndarray:
    """(b, 4) sums of three values, and their number -> (b,) harmonic mean of the three means; 0 where one is 0."""
    means = sums[:, :3] / sums[:, 3:]
    inverse = np.divide(1.0, means, out=np.full_like(means, np.inf), where=means > 0)
    return 3 / inverse.sum(axis=1)


def counterfact_score(items: Sequence[Sequence[Any]]) -> float:
    """CounterFact's S: the harmonic mean of efficacy, paraphrase and neighbourhood success, each a mean over facts."""
    return float(harmonic(harmonic_counts(items).sum(axis=0, keepdims=True))[0])


def counterfact_score_stderr(items: Sequence[Sequence[Any]]) -> float:
    """Standard error of `counterfact_score`, by a bootstrap over facts."""
    return cluster_bootstrap([item[0] for item in items], harmonic_counts(items), harmonic)
