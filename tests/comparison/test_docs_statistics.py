"""Every number of the examples in docs/statistics.md, recomputed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from lm_eval_edit.comparison import combined
from lm_eval_edit.comparison import statistics as s
from lm_eval_edit.tasklib.suite.aggregate import f1
from tests.conftest import ROOT

TEXT = " ".join((ROOT / "docs" / "statistics.md").read_text().split())


def number(value: float, sign: bool = True) -> str:
    return (f"{value:+.4f}" if sign else f"{value:.4f}").replace("-", "−")


def interval(found: s.Estimate) -> str:
    return f"[{number(found.low)}, {number(found.high)}]"


DIFFERENCES = np.array([-0.4, -0.3, -0.1, 0, 0.1, -0.2, -0.3, -0.2, 0, 0.1, -0.1, -0.2])
CLUSTERS, ALONE = np.repeat(np.arange(6), 2), np.arange(12)
BEFORE = np.array([[2, 2, 2], [1, 2, 1], [3, 3, 3], [0, 1, 1], [2, 2, 3], [1, 1, 1]], dtype=float)
AFTER = np.array([[1, 2, 2], [1, 1, 1], [2, 3, 3], [0, 2, 1], [1, 2, 3], [1, 1, 1]], dtype=float)
PROPORTION = s.proportion_difference(30, 10, 400)
CLUSTERED = s.mean_difference(DIFFERENCES, CLUSTERS)
MEAN, MEAN_P = combined.weighted_mean([PROPORTION, CLUSTERED], [0.5, 0.5])
ONE_LOST = s.mean_difference(np.append(np.zeros(99), -0.2), np.arange(100))
LOST = s.proportion_difference(2, 0, 40)
BOUNDS = [float(beta.ppf(0.05, right, 101 - right)) for right in (59, 58)]
HOLM = ", ".join(number(p, sign=False) for p in s.holm([s.mcnemar(30, 10), 0.03, 0.2]))


@pytest.mark.parametrize(
    "sentence",
    [
        f"the difference is {number(PROPORTION.value)}, the interval {interval(PROPORTION)}",
        f"no change at all it is {interval(s.proportion_difference(0, 0, 100))}",
        f"after: {interval(LOST.within(0.95, -0.05))}, where the formula alone has {interval(LOST)}",
        f"59 right are above chance (bound {BOUNDS[0]:.4f}), 58 are not ({BOUNDS[1]:.4f})",
        f"mean {number(CLUSTERED.value)}, SE {CLUSTERED.stderr:.4f}, interval {interval(CLUSTERED)}",
        f"As if independent, it would be {interval(s.mean_difference(DIFFERENCES, ALONE))}",
        f"F1 falls from {f1(BEFORE.sum(0)[None])[0]:.4f} to {f1(AFTER.sum(0)[None])[0]:.4f}, "
        f"interval {interval(s.bootstrap_difference(BEFORE, AFTER, f1))}",
        f"40 clusters: ±{s.unchanged(40, 1.0).high:.4f}",
        f"b = 30, c = 10: p = {s.mcnemar(30, 10):.4f}",
        f"the t interval is {interval(ONE_LOST)}, the one given {interval(s.few_changed(ONE_LOST, 1, 100, 1.0))}",
        f"the six clusters above: p = {s.sign_flip(DIFFERENCES, CLUSTERS):.4f}",
        f"as if independent: p = {s.sign_flip(DIFFERENCES, ALONE):.4f}",
        f"the six sentences: p = {s.swap_test(BEFORE, AFTER, f1):.4f}",
        f"p = 0.0022, 0.03, 0.2 become {HOLM}",
        f"b = 30, c = 10: {s.detectable_drop(PROPORTION.stderr):.4f} in one test, "
        f"{s.detectable_drop(PROPORTION.stderr, tests=8):.4f} among eight",
        f"cannot reliably show less than {s.detectable_share(100, tests=8):.4f} among eight tasks",
        f"a recovery of {s.recovery(0.90, 0.85):.4f}",
        f"allows a drop of {0.90 * (1 - 0.95):.4f} from 0.90",
        f"half and half: {number(MEAN.value)}, interval {interval(MEAN)}, p = {MEAN_P:.4f}",
        f"−0.10, −0.20, −0.15: {number(-0.15)}, between seeds {interval(combined.between_runs([-0.10, -0.20, -0.15]))}",
    ],
)
def test_the_number_in_the_text_is_the_one_computed(sentence):
    assert sentence in TEXT
