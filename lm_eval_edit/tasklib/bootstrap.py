"""The standard error of a figure that is no mean: by resampling whole clusters of documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
SEED = 2401_04700
_CHUNK = 1 << 22  # weights held at a time: 32 MiB

Statistic = Callable[[np.ndarray], np.ndarray]


def cluster_bootstrap(clusters: Sequence[int | str], counts: np.ndarray, statistic: Statistic) -> float:
    """Standard error of a statistic of summed counts, by resampling clusters with replacement.

    Args:
        clusters: (n,) cluster of each document.
        counts: (n, k) what each document adds.
        statistic: (b, k) sums -> (b,) values, for all resamples at once.

    Returns:
        Standard deviation over `RESAMPLES` resamples, from a generator of its own with a fixed seed; NaN for fewer than
        two clusters, about which a bootstrap can say nothing (the harness's "N/A").
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    m = int(index.max()) + 1 if len(index) else 0
    if m < 2:
        return float("nan")
    sums = np.zeros((m, counts.shape[1]))  # (m, k)
    np.add.at(sums, index, counts)
    rng = np.random.default_rng(SEED)
    values = []
    for first in range(0, RESAMPLES, step := max(1, _CHUNK // m)):
        # m draws with replacement from m clusters, as how often each was drawn: (b, m)
        weights = rng.multinomial(m, np.full(m, 1 / m), size=min(step, RESAMPLES - first))
        values.append(statistic(weights @ sums))
    return float(np.concatenate(values).std(ddof=1))
