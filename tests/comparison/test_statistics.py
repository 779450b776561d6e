"""The statistics against other people's implementations, brute force, and simulation."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lm_eval_edit.comparison import combined
from lm_eval_edit.comparison import statistics as s
from lm_eval_edit.comparison.aggregations import AGGREGATIONS
from lm_eval_edit.tasklib.suite import aggregate


def singletons(n: int) -> np.ndarray:
    return np.arange(n)


# ------------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize(("worse", "better"), [(0, 1), (5, 0), (9, 2), (30, 31), (121, 59), (3, 40)])
def test_mcnemar_is_statsmodels_exact_test(worse, better):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    expected = tables.mcnemar([[100, worse], [better, 50]], exact=True).pvalue
    assert s.mcnemar(worse, better) == pytest.approx(expected, rel=1e-12)
    assert s.mcnemar(worse, better) == pytest.approx(stats.binomtest(worse, worse + better).pvalue, rel=1e-12)


def test_mcnemar_without_changes_says_nothing():
    assert s.mcnemar(0, 0) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_statsmodels(seed):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(seed).random(12) ** 3
    p[3] = p[7]  # ties
    np.testing.assert_allclose(s.holm(p), multitest.multipletests(p, method="holm")[1], rtol=1e-12)


def test_holm_by_hand():
    np.testing.assert_allclose(s.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert s.holm([]).shape == (0,)


@pytest.mark.parametrize("n", [2, 5, 9, 13])
def test_sign_flip_is_brute_force(n):
    d = np.random.default_rng(n).normal(0.4, 1, n)
    patterns = np.array(list(itertools.product([-1, 1], repeat=n)))
    expected = np.mean(np.abs(patterns @ d) >= abs(d.sum()) - 1e-12)
    assert s.sign_flip(d, singletons(n)) == pytest.approx(expected, abs=1e-15)


def test_sign_flip_of_clusters_flips_them_whole():
    d, clusters = np.array([0.2, 0.3, -0.1, 0.6, 0.5]), np.array([0, 0, 1, 2, 2])
    assert s.sign_flip(d, clusters) == s.sign_flip(np.array([0.5, -0.1, 1.1]), singletons(3)) == 0.5
    assert s.sign_flip(d, clusters) != s.sign_flip(d, singletons(5))


def test_sampled_sign_flip_is_scipys_permutation_test_and_repeats_itself():
    rng = np.random.default_rng(0)
    before = rng.normal(size=60)
    after = before + rng.normal(0.2, 1, size=60)
    expected = stats.permutation_test(
        (after, before), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, rng=rng
    ).pvalue
    p = s.sign_flip(after - before, singletons(60), seed=1)
    assert p == pytest.approx(expected, abs=0.015)
    again, other = (s.sign_flip(after - before, singletons(60), seed=seed) for seed in (1, 2))
    assert p == again != other


def test_sign_flip_has_its_normal_limit():
    d = np.random.default_rng(3).normal(0.011, 1, 21_000)
    sampled = s._flipped(lambda signs: signs @ d, len(d), np.abs(d).sum(), seed=0, resamples=1999)
    assert s.sign_flip(d, singletons(len(d))) == pytest.approx(sampled, abs=0.03)


def test_sign_flip_without_changes_says_nothing():
    assert s.sign_flip(np.zeros(9), singletons(9)) == 1.0
    assert s.sign_flip(np.array([1.0, -1.0]), np.array([0, 0])) == 1.0, "the cluster as a whole did not change"


def test_swap_test_is_brute_force():
    rng = np.random.default_rng(4)
    before, after = rng.integers(1, 5, (2, 8, 3)).astype(float)
    before[:, 0], after[:, 0] = 1, 0
    differences = []
    for swaps in itertools.product([False, True], repeat=8):
        swap = np.array(swaps)[:, None]
        a, b = np.where(swap, after, before), np.where(swap, before, after)
        differences.append(aggregate.f1(b.sum(0)[None])[0] - aggregate.f1(a.sum(0)[None])[0])
    expected = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    assert s.swap_test(before, after, aggregate.f1) == pytest.approx(expected, abs=1e-15)


def test_swap_test_of_a_mean_is_sign_flip():
    rng = np.random.default_rng(5)
    before, after = rng.random((2, 40))
    counts = [np.stack([x, np.ones(40)], axis=1) for x in (before, after)]
    p = s.swap_test(*counts, AGGREGATIONS["mean"].statistic, seed=7)
    assert p == s.sign_flip(after - before, singletons(40), seed=7)


def test_plain_interval_is_scipys_paired_t():
    rng = np.random.default_rng(6)
    before, after = rng.random((2, 30))
    expected = stats.ttest_rel(after, before).confidence_interval(0.9)
    found = s.mean_difference(after - before, singletons(30), alpha=0.1)
    assert (found.low, found.high) == pytest.approx(expected)


def test_clustered_interval_is_statsmodels_cluster_robust_one():
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(7)
    clusters = rng.integers(0, 25, 100)
    clusters = np.unique(clusters, return_inverse=True)[1]
    d = rng.normal(size=25)[clusters] + rng.normal(size=100)
    # n/(n-1) is statsmodels' further small-sample factor for regressions; a mean has none.
    fit = api.OLS(d, np.ones(100)).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    m = clusters.max() + 1
    assert s.mean_difference(d, clusters).stderr == pytest.approx(fit.bse[0] * math.sqrt(m / (m - 1)))
    assert s.mean_difference(d, singletons(100)).stderr == pytest.approx(d.std(ddof=1) / 10)


def test_bonett_and_prices_interval_by_hand():
    # 100 pairs, 10 changed one way, 4 the other: (5 - 11)/102 ± 1.96 sqrt((5/102 + 11/102 - (6/102)^2)/102)
    found = s.proportion_difference(10, 4, 100)
    half = 1.959964 * math.sqrt((16 / 102 - (6 / 102) ** 2) / 102)
    assert found.value == pytest.approx(-0.06)
    assert (found.low, found.high) == pytest.approx((-6 / 102 - half, -6 / 102 + half), abs=1e-7)
    unchanged = s.proportion_difference(0, 0, 100)
    assert unchanged.low < 0 < unchanged.high, "100 documents without a change do not exclude one"


def test_bootstrap_of_a_mean_agrees_with_the_formula():
    rng = np.random.default_rng(8)
    before, after = rng.random((2, 400))
    counts = [np.stack([x, np.ones(400)], axis=1) for x in (before, after)]
    found = s.bootstrap_difference(*counts, AGGREGATIONS["mean"].statistic, seed=1)
    formula = s.mean_difference(after - before, singletons(400))
    assert found.value == pytest.approx(formula.value)
    assert found.stderr == pytest.approx(formula.stderr, rel=0.06)
    assert (found.low, found.high) == pytest.approx((formula.low, formula.high), abs=0.1 * formula.stderr + 0.003)
    assert found == s.bootstrap_difference(*counts, AGGREGATIONS["mean"].statistic, seed=1)


def test_one_cluster_alone_says_nothing():
    found = s.mean_difference(np.array([0.1, 0.2]), np.array([0, 0]))
    assert (found.low, found.high) == (-np.inf, np.inf)
    counts = np.ones((1, 3))
    assert s.bootstrap_difference(counts, counts, aggregate.f1).high == np.inf
    assert combined.weighted_mean([found], [1.0])[1] == 1.0
    one = combined.cluster_covariance([np.ones(2), np.zeros(1)], [np.zeros(2), np.zeros(1)])
    mean, _ = combined.weighted_mean([s.proportion_difference(0, 2, 2)] * 2, [0.5, 0.5], shared=one)
    assert (mean.low, mean.high) == (-1, 1)  # all that is possible


def test_weighted_mean_of_two_tasks():
    a, b = s.Estimate(-0.1, 0.03, 0, 0, 50, "t"), s.Estimate(0.02, 0.04, 0, 0, np.inf, "t")
    mean, p = combined.weighted_mean([a, b], [0.5, 0.5])
    assert mean.value == pytest.approx(-0.04) and mean.stderr == pytest.approx(0.025)
    assert p == pytest.approx(2 * stats.t.sf(1.6, mean.df)) and mean.df == pytest.approx(25**4 / (15**4 / 50))


def test_weighted_mean_of_tasks_about_the_same_clusters_is_that_of_a_joint_bootstrap():
    """Three tasks of 1, 3 and 2 documents to a fact, a fact's own effect in all of them; some facts lack a task."""
    rng = np.random.default_rng(11)
    effect, tasks, facts = rng.normal(0, 0.3, 60), [], []
    for each, has in ((1, 60), (3, 50), (2, 60)):
        facts.append(rng.permutation(np.repeat(np.arange(has), each)))
        tasks.append(effect[facts[-1]] + rng.normal(0, 0.2, len(facts[-1])))
    weights = np.array([0.5, 0.3, 0.2])
    drawn = []
    for _ in range(4000):
        times = np.bincount(rng.integers(60, size=60), minlength=60)
        drawn.append(sum(w * np.average(t, weights=times[f]) for w, t, f in zip(weights, tasks, facts, strict=True)))
    parts = [s.mean_difference(t, f) for t, f in zip(tasks, facts, strict=True)]
    alone, _ = combined.weighted_mean(parts, weights)
    together, p = combined.weighted_mean(parts, weights, shared=combined.cluster_covariance(tasks, facts))
    assert together.stderr == pytest.approx(np.std(drawn), rel=0.05) and alone.stderr < 0.8 * np.std(drawn)
    assert together.value == alone.value and together.df == 59
    assert p == pytest.approx(2 * stats.t.sf(abs(together.value) / together.stderr, 59))


def test_detectable_drop_is_detected_with_its_power():
    """Of 400 documents, 5 % turn right by themselves; as many turn wrong, plus the detectable drop."""
    rng = np.random.default_rng(9)
    n, share = 400, 0.05
    stderr = s.proportion_difference(20, 20, n).stderr
    drop = s.detectable_drop(stderr)
    hits = [
        s.mcnemar(*rng.multinomial(n, [share + drop, share, 1 - 2 * share - drop])[:2]) <= 0.05 for _ in range(1000)
    ]
    assert 0.65 < np.mean(hits) < 0.85, "the stderr grows a little with the drop, so a little less than 80 %"


def test_detectable_share_is_what_mcnemars_test_needs():
    share = s.detectable_share(100)
    needed = next(k for k in range(100) if s.mcnemar(k, 0) <= 0.05)
    assert stats.binom.sf(needed - 1, 100, share) == pytest.approx(0.8)
    assert s.detectable_share(5) == math.inf, "five changes one way are not significant"
    assert s.detectable_share(100, tests=8) > share


def test_recovery():
    assert s.recovery(0.8, 0.6) == pytest.approx(0.75)
    assert s.recovery(2.0, 4.0, higher_is_better=False) == 0.5
    assert s.recovery(0.0, 0.1) is None


# ---------------------------------------------------------------------------------------------------------- simulation

TRIALS = 2_500


def clustered_pairs(rng, m=60, effect=-0.05):
    """Two answers to each document; the documents of a passage rise and fall together. Sizes 1 to 6."""
    clusters = np.repeat(np.arange(m), rng.integers(1, 7, m))
    shift = rng.normal(effect, 0.2, m)[clusters]
    return shift + rng.normal(0, 0.3, len(clusters)), clusters


def binary_pairs(rng, n=200, worse=0.12, better=0.07):
    down, up, _ = rng.multinomial(n, [worse, better, 1 - worse - better])
    return down, up


def test_coverage_of_paired_proportions():
    rng = np.random.default_rng(10)
    inside = 0
    for _ in range(TRIALS):
        found = s.proportion_difference(*binary_pairs(rng), 200)
        inside += found.low <= -0.05 <= found.high
    assert 0.93 <= inside / TRIALS <= 0.97


def test_coverage_of_means():
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(TRIALS):
        d = rng.beta(0.5, 0.5, 80) - rng.beta(0.6, 0.4, 80)  # skewed, mean -0.1
        found = s.mean_difference(d, singletons(80))
        inside += found.low <= -0.1 <= found.high
    assert 0.93 <= inside / TRIALS <= 0.97


def test_coverage_of_clustered_means_and_that_it_needs_the_clusters():
    rng = np.random.default_rng(12)
    inside = naive = 0
    for _ in range(TRIALS):
        d, clusters = clustered_pairs(rng)
        found, plain = s.mean_difference(d, clusters), s.mean_difference(d, singletons(len(d)))
        inside += found.low <= -0.05 <= found.high
        naive += plain.low <= -0.05 <= plain.high
    assert 0.93 <= inside / TRIALS <= 0.97
    assert naive / TRIALS < 0.90, "without clusters the interval would be too short"


def clustered_answers(rng, m=80):
    """0/1 changes: a passage either keeps its four answers, or each turns wrong (or right) with probability 1/2."""
    state = rng.choice([-1, 0, 1], m, p=[0.2, 0.7, 0.1])
    return (state[:, None] * (rng.random((m, 4)) < 0.5)).astype(float).ravel(), np.repeat(np.arange(m), 4)


def test_coverage_of_clustered_answers():
    rng = np.random.default_rng(13)
    inside = 0
    for _ in range(TRIALS):
        found = s.mean_difference(*clustered_answers(rng), binary=True)
        inside += found.low <= -0.05 <= found.high
    assert 0.93 <= inside / TRIALS <= 0.97


def rare_losses(rng, expected: float, sizes: str, m: int = 100):
    """Each of m documents gets worse with a probability of expected / m; by how much is as `sizes` says."""
    lost = rng.random(m) < expected / m
    if sizes == "whole":
        return -1.0 * lost, expected / m
    if sizes == "any":
        return -rng.random(m) * lost, 0.5 * expected / m
    return -np.where(rng.random(m) < 0.1, 1.0, 0.1) * lost, 0.19 * expected / m  # mostly little, now and then all


@pytest.mark.parametrize("sizes", ["whole", "any", "rarely all"])
@pytest.mark.parametrize("expected", [0.5, 1, 2, 3, 4, 5, 6])
def test_coverage_where_few_documents_changed(expected, sizes):
    rng = np.random.default_rng(20)
    inside = plain = 0
    for _ in range(TRIALS // 2):
        d, loss = rare_losses(rng, expected, sizes)
        alone = s.mean_difference(d, singletons(100))
        found = s.few_changed(alone, int((d != 0).sum()), 100, 1.0)
        plain += alone.low <= -loss <= alone.high
        inside += found.low <= -loss <= found.high
    assert inside / (TRIALS // 2) >= 0.93
    assert sizes != "rarely all" or expected < 2 or plain / (TRIALS // 2) < 0.8, "a t interval alone is far too short"


def test_an_unchanged_model_is_never_less_certain_than_one_that_changed_a_little():
    same = s.few_changed(s.mean_difference(np.zeros(100), singletons(100)), 0, 100, 1.0)
    assert same == s.unchanged(100, 1.0)
    for count in range(1, s.FEW):
        d = np.zeros(100)
        d[:count] = -0.01
        found = s.few_changed(s.mean_difference(d, singletons(100)), count, 100, 1.0)
        assert found.low <= found.value + same.low < same.low and found.stderr >= same.stderr, count
        assert found.value == d.mean() and found.method == "t, few changed"
    many = s.mean_difference(np.linspace(-0.3, 0.3, 100), singletons(100))
    assert s.few_changed(many, 100, 100, 1.0) == s.few_changed(many, s.FEW, 100, 1.0) == many
    assert s.few_changed(many, 4, 8, 1.0) == many, "half of the clusters are not few of them"


def test_intervals_are_cut_to_what_is_possible():
    d = np.array([-1.0, -1.0, -1.0, 0.0])
    found = s.mean_difference(d, singletons(4)).within(1.0)
    assert found.low == -1.0 and found.high == s.mean_difference(d, singletons(4)).high and found.most == 1.0
    mean, _ = combined.weighted_mean([found, found], [0.5, 0.5])
    assert mean.low == -1.0 and mean.most == 1.0
    unknown, _ = combined.weighted_mean([found, s.mean_difference(d, singletons(4))], [0.5, 0.5])
    assert unknown.low < -1.0 and unknown.most == math.inf


def entity_pairs(rng, m, keep=(0.9, 0.8)):
    """(m, 3) true positives, predicted, gold before and after, of sentences whose difficulty both share."""
    gold = rng.integers(1, 6, m)
    easy = rng.normal(0, 0.1, m)
    sides = []
    for share in keep:
        tp = rng.binomial(gold, np.clip(share + easy, 0, 1))
        sides.append(np.stack([tp, tp + rng.binomial(2, 0.1, m), gold], axis=1).astype(float))
    return sides


def test_coverage_of_the_bootstrap_of_f1():
    rng = np.random.default_rng(14)
    before, after = entity_pairs(rng, 400_000)
    truth = s.bootstrap_difference(before, after, aggregate.f1, resamples=2).value
    inside = 0
    for seed in range(2_000):
        found = s.bootstrap_difference(*entity_pairs(rng, 100), aggregate.f1, seed=seed, resamples=300)
        inside += found.low <= truth <= found.high
    assert 0.93 <= inside / 2_000 <= 0.97


def test_false_alarms_of_mcnemar():
    rng = np.random.default_rng(15)
    alarms = [s.mcnemar(*binary_pairs(rng, worse=0.1, better=0.1)) <= 0.05 for _ in range(TRIALS)]
    assert np.mean(alarms) <= 0.06


def test_false_alarms_of_sign_flip_and_that_it_needs_the_clusters():
    rng = np.random.default_rng(16)
    alarms, naive = [], []
    for seed in range(2_000):
        d, clusters = clustered_pairs(rng, m=40, effect=0.0)
        alarms.append(s.sign_flip(d, clusters, seed=seed, resamples=199) <= 0.05)
        naive.append(s.sign_flip(d, singletons(len(d)), seed=seed, resamples=199) <= 0.05)
    assert np.mean(alarms) <= 0.06 < 0.10 < np.mean(naive)


def test_false_alarms_of_the_swap_test():
    rng = np.random.default_rng(17)
    alarms = [
        s.swap_test(*entity_pairs(rng, 40, keep=(0.8, 0.8)), aggregate.f1, seed=seed, resamples=199) <= 0.05
        for seed in range(2_000)
    ]
    assert np.mean(alarms) <= 0.06


def test_false_alarms_of_a_family_of_eight_under_holm():
    rng = np.random.default_rng(18)
    mcnemar = functools.cache(s.mcnemar)
    alarms = 0
    for _ in range(TRIALS):
        p = [mcnemar(*binary_pairs(rng, worse=0.1, better=0.1)) for _ in range(8)]
        alarms += (s.holm(p) <= 0.05).any()
    assert alarms / TRIALS <= 0.06
