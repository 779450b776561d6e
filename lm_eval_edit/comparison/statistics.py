"""Statistics of paired evaluations: the same documents answered before and after.

Pure functions of numpy arrays; `docs/statistics.md` explains each figure: formula, source and a worked example.
Differences are after − before throughout. Resampling uses generators seeded by the caller's `seed`, never the global
state. Where documents share a passage or a sentence they form a cluster, and clusters, not documents, are what is
resampled or summed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

RESAMPLES = 9_999  # of a permutation test: the smallest p is 1/10,000
BOOTSTRAPS = 2_000
POWER = 0.8
FEW = 10  # changed clusters below which their own spread says too little about those that did not change
_EXACT = 14  # up to this many clusters that changed, all 2^m sign patterns are counted
_NORMAL = 20_000  # beyond this many, the permutation distribution is its normal limit
_CHUNK = 1 << 22  # random signs held at a time: 32 MiB as float64

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A difference with its uncertainty.

    Attributes:
        value: The difference.
        stderr: Its standard error.
        low, high: The two-sided confidence interval.
        df: Degrees of freedom of `stderr`; infinite for normal and bootstrap intervals.
        method: How the interval was made, in a word or two.
        least, most: The smallest and the largest that the difference can be, to which the interval is cut; infinite
            where unknown.
    """

    value: float
    stderr: float
    low: float
    high: float
    df: float
    method: str
    most: float = np.inf
    least: float = -np.inf

    def within(self, most: float, least: float | None = None) -> Estimate:
        """The same, cut to what is possible: from `least` (−`most` by default) to `most`."""
        least = -most if least is None else least
        return replace(self, low=max(self.low, least), high=min(self.high, most), most=most, least=least)

    def reversed(self) -> Estimate:
        """The same of the differences with their signs turned."""
        return replace(
            self, value=-self.value, low=-self.high, high=-self.low, most=-self.least, least=-self.most
        )  # fmt: skip


def cluster_sums(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sum over the documents of each cluster.

    Args:
        values: (n,) or (n, k), one row for each document.
        clusters: (n,) integers from 0.

    Returns:
        (m,) or (m, k).
    """
    m = int(clusters.max(initial=-1)) + 1
    if values.ndim == 1:
        return np.bincount(clusters, weights=values, minlength=m)
    columns = [np.bincount(clusters, weights=column, minlength=m) for column in values.T]
    return np.stack(columns, axis=1)


# --------------------------------------------------------------------------------------------------------------- tests


def mcnemar(worse: int, better: int) -> float:
    """Two-sided exact p of McNemar's test (1947): the changes are as likely one way as the other.

    Args:
        worse: Documents right before and wrong after.
        better: Documents wrong before and right after.

    Returns:
        The binomial p; 1 where nothing changed.
    """
    changed = worse + better
    return float(stats.binomtest(worse, changed, 0.5).pvalue) if changed else 1.0


def sign_flip(differences: np.ndarray, clusters: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Two-sided p of the paired permutation test: swapping before and after of a cluster changes nothing but a sign.

    Counted exactly for up to 14 clusters that changed, by `resamples` seeded patterns up to 20,000, and by the normal
    limit of the same distribution beyond. A cluster that did not change has no sign and drops out.

    Args:
        differences: (n,) of each document.
        clusters: (n,) integers from 0.
    """
    sums = cluster_sums(differences, clusters)
    scale = np.abs(sums).max(initial=0.0)
    sums = sums[np.abs(sums) > 1e-12 * scale] if scale else sums[:0]
    if not len(sums):
        return 1.0
    if len(sums) > _NORMAL:
        return float(2 * stats.norm.sf(abs(sums.sum()) / np.linalg.norm(sums)))
    return _flipped(lambda signs: signs @ sums, len(sums), float(np.abs(sums).sum()), seed, resamples)


def swap_test(
    before: np.ndarray, after: np.ndarray, statistic: Statistic, *, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """The permutation test for a corpus-level metric (approximate randomisation, Noreen 1989): swap whole clusters.

    Args:
        before: (m, k) what each cluster adds to the sums.
        after: The same of the other run.
        statistic: (b, k) sums -> (b,) values.
    """
    total, change = before + after, after - before  # (m, k)
    moved = np.abs(change).sum(axis=1) > 0
    if not moved.any():
        return 1.0
    fixed, change = total.sum(axis=0), change[moved]

    def difference(signs: np.ndarray) -> np.ndarray:
        shift = signs @ change  # (b, k)
        return statistic((fixed + shift) / 2) - statistic((fixed - shift) / 2)

    if len(change) > _NORMAL:  # still resampled, since no normal limit is at hand for any statistic; but fewer times
        resamples = min(resamples, 999)
    return _flipped(difference, len(change), 1.0, seed, resamples)


def _flipped(difference: Statistic, m: int, scale: float, seed: int, resamples: int) -> float:
    """Share of sign patterns (b, m) whose |difference| is at least that of all pluses."""
    bound = abs(float(difference(np.ones((1, m)))[0])) - 1e-9 * scale  # ties count, whatever the round-off
    if m <= _EXACT:
        patterns = 1 - 2.0 * (np.arange(2 ** (m - 1))[:, None] >> np.arange(m) & 1)  # the other half mirrors it
        return float(np.mean(np.abs(difference(patterns)) >= bound))
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // m)
    extreme = 0
    for first in range(0, resamples, step):
        b = min(step, resamples - first)
        bits = np.unpackbits(rng.integers(0, 256, size=(b, -(-m // 8)), dtype=np.uint8), axis=1)[:, :m]
        extreme += int((np.abs(difference(1 - 2.0 * bits)) >= bound).sum())
    return (extreme + 1) / (resamples + 1)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment (1979): p values that may each be held against one level for the whole family."""
    given = np.asarray(p, dtype=float)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


# ----------------------------------------------------------------------------------------------------------- intervals


def proportion_difference(worse: int, better: int, n: int, *, alpha: float = 0.05) -> Estimate:
    """Difference of two paired proportions with Bonett and Price's (2012) adjusted Wald interval.

    One imagined change each way keeps the interval open where nothing changed: n documents without a change do not
    prove that there would be none among more.

    Args:
        worse: Documents that were right before and are wrong after.
        better: Documents that were wrong before and are right after.
        n: All documents, each a cluster of its own.
    """
    down, up = (worse + 1) / (n + 2), (better + 1) / (n + 2)
    stderr = float(np.sqrt((down + up - (up - down) ** 2) / (n + 2)))
    half = float(stats.norm.isf(alpha / 2)) * stderr
    centre = up - down
    return Estimate((better - worse) / n, stderr, centre - half, centre + half, np.inf, "Wald+1").within(1.0)


def mean_difference(
    differences: np.ndarray, clusters: np.ndarray, *, alpha: float = 0.05, binary: bool = False
) -> Estimate:
    """Mean of paired differences with a cluster-robust t interval (Miller 2024, section 2.2).

    Args:
        differences: (n,) of each document.
        clusters: (n,) integers from 0, m of them. Singletons give the plain standard error of a mean.
        binary: The differences are of 0/1 values. Where few clusters change, their spread says too little about the
            rest; as in `proportion_difference`, two imagined clusters of average size change, one each way, by as much
            as a changed cluster typically does (fully, if none did).

    Returns:
        With m − 1 degrees of freedom; one cluster alone says nothing: an infinite interval.
    """
    n, m = len(differences), int(clusters.max(initial=-1)) + 1
    mean = float(differences.mean())
    if m < 2:
        return Estimate(mean, np.inf, -np.inf, np.inf, 0.0, "one cluster")
    sums, sizes = cluster_sums(differences, clusters), np.bincount(clusters, minlength=m).astype(float)
    if binary:
        moved = sums[sums != 0]
        typical = np.sqrt(np.mean(moved**2)) if len(moved) else n / m
        sums, sizes = np.append(sums, [typical, -typical]), np.append(sizes, [n / m, n / m])
    total, k = sizes.sum(), len(sums)
    centre = float(sums.sum() / total)
    stderr = float(np.sqrt(k / (k - 1) * ((sums - sizes * centre) ** 2).sum()) / total)
    half = float(stats.t.isf(alpha / 2, m - 1)) * stderr
    method = ("cluster t" if m < n else "t") + ("+1" if binary else "")
    return Estimate(mean, stderr, centre - half, centre + half, m - 1, method)


def unchanged(m: int, scale: float, *, alpha: float = 0.05) -> Estimate:
    """The interval where no cluster changed: what m unchanged clusters leave possible.

    With probability 1 − α/2 or more, a share of changing clusters above 1 − (α/2)^(1/m) would have shown at least one;
    each moves its documents by at most `scale`.

    Args:
        m: Clusters.
        scale: The most that one document can change.
    """
    half = scale * (1 - (alpha / 2) ** (1 / m))
    stderr = half / float(stats.norm.isf(alpha / 2))
    return Estimate(0.0, stderr, -half, half, np.inf, "no change seen")


def few_changed(estimate: Estimate, changed: int, m: int, scale: float, *, alpha: float = 0.05) -> Estimate:
    """The estimate, where few clusters changed with at least the uncertainty that `unchanged` leaves.

    The spread of a handful of changes, most of the differences being 0, does not speak of rarer and larger ones. A t
    interval covers 57 to 93 % instead of 95 % where 2 to 6 of 100 clusters can be expected to change (and is narrower
    than the one where nothing changed at all). So with fewer than `FEW` changed clusters, and these fewer than half,
    the interval is the hull of itself and of the difference ± what unchanged clusters leave possible; simulated, that
    covers 93 % or more up to 6 expected changes whatever their sizes are.

    Args:
        estimate: A t or bootstrap interval.
        changed: How many clusters changed at all.
        m: Clusters.
        scale: The most that one document can change.
    """
    if m < 2 or changed >= FEW or (changed and 2 * changed >= m):
        return estimate
    floor = unchanged(m, scale, alpha=alpha)
    if not changed:
        return floor
    low, high = min(estimate.low, estimate.value + floor.low), max(estimate.high, estimate.value + floor.high)
    stderr, df = max((estimate.stderr, estimate.df), (floor.stderr, floor.df))
    return Estimate(estimate.value, stderr, low, high, df, f"{estimate.method}, few changed")


def bootstrap_difference(
    before: np.ndarray, after: np.ndarray, statistic: Statistic, *, alpha: float = 0.05, seed: int = 0,
    resamples: int = BOOTSTRAPS,
) -> Estimate:  # fmt: skip
    """Difference of a corpus-level metric with the percentile interval of a paired bootstrap over clusters.

    Percentiles of m resampled clusters are too narrow by what t_(m−1) and m/(m−1) mend for a mean; the interval is
    widened about the difference by the same factor (Hesterberg 2015, "expanded percentile interval").

    Args:
        before: (m, k) what each cluster adds to the sums.
        after: The same of the other run; both are resampled by the same draw.
        statistic: (b, k) sums -> (b,) values, NaN where a draw leaves it undefined (those draws are left out).
    """
    m, k = before.shape
    value = float((statistic(after.sum(axis=0)[None]) - statistic(before.sum(axis=0)[None]))[0])
    if m < 2:
        return Estimate(value, np.inf, -np.inf, np.inf, 0.0, "one cluster")
    rng = np.random.default_rng(seed)
    both = np.hstack([before, after])  # (m, 2 k)
    sums = np.empty((resamples, 2 * k))
    for row in sums:
        row[:] = np.bincount(rng.integers(m, size=m), minlength=m) @ both
    drawn = statistic(sums[:, k:]) - statistic(sums[:, :k])
    drawn = drawn[np.isfinite(drawn)]
    factor = np.sqrt(m / (m - 1)) * stats.t.isf(alpha / 2, m - 1) / stats.norm.isf(alpha / 2)
    low, high = value + factor * (np.quantile(drawn, [alpha / 2, 1 - alpha / 2]) - value)
    stderr = float(np.sqrt(m / (m - 1)) * drawn.std(ddof=1))
    return Estimate(value, stderr, float(low), float(high), m - 1, "bootstrap")


# -------------------------------------------------------------------------------------------------- beside the verdict


def detectable_drop(stderr: float, *, alpha: float = 0.05, tests: int = 1, power: float = POWER) -> float:
    """The smallest drop that this comparison would call significant with probability `power` (Miller 2024, section 5).

    Args:
        stderr: Standard error of the difference.
        tests: Size of the family under Holm's correction, whose first step tests at alpha / tests.
    """
    return float(stats.norm.isf(alpha / tests / 2) + stats.norm.ppf(power)) * stderr


def detectable_share(n: int, *, alpha: float = 0.05, tests: int = 1, power: float = POWER) -> float:
    """The same for right answers that turn wrong, none turning right: what McNemar's test needs at the very least.

    Returns:
        The share of n documents; infinite if even n changes in one direction would not be significant.
    """
    needed = int(np.ceil(np.log2(2 * tests / alpha) - 1e-9))  # k changes in one direction have p = 2 · 0.5^k
    return float(stats.beta.ppf(power, needed, n - needed + 1)) if needed <= n else float("inf")


def recovery(before: float, after: float, higher_is_better: bool = True) -> float | None:
    """after / before, the share of the ability that is left (before / after where lower is better); None over 0."""
    part, whole = (after, before) if higher_is_better else (before, after)
    return part / whole if whole > 0 else None
