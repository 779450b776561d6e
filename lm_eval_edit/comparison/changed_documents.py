"""Which documents did better or worse: what was lost, what was won, and what only looks as if it were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm_eval_edit.comparison.logged_metrics import Metric
from lm_eval_edit.comparison.pairing import Pair
from lm_eval_edit.tasklib.measures import FORMAT


@dataclass(frozen=True)
class Flips:
    """How many documents changed, each way.

    Attributes:
        worse, better: For 0/1 metrics right → wrong and wrong → right; for others by the document's own value. Nothing
            is won by an output that says nothing (see `won`), so these may be fewer than those the test counts.
        lost_format, lost_ability: Of `worse`: those whose output is no longer valid (the asked form is lost), and those
            still valid (the form is kept, the answer is not); None for tasks without a metric `valid`.
        answers: Documents whose answer changed at all.
    """

    worse: int
    better: int
    lost_format: int | None
    lost_ability: int | None
    answers: int


def gains(before: Metric, after: Metric) -> np.ndarray:
    """(n,) how much better each document did, whichever way the metric points."""
    change: np.ndarray = after.aggregation.gain(after.counts) - before.aggregation.gain(before.counts)
    return change * before.sign


def is_binary(before: Metric, after: Metric) -> bool:
    """Whether each document is simply right or wrong."""
    return before.is_binary and after.is_binary


def won(pair: Pair, name: str) -> np.ndarray:
    """(n,) whether a document is won: it does better, and not by saying nothing.

    A model that stops naming entities makes no false ones any more, so its errors become fewer while it breaks down.
    What was named falsely and is passed over now is no ability gained; nor is an output that has lost its form.
    """
    before, after = pair.base.metrics[name], pair.edited.metrics[name]
    better = gains(before, after) > 0
    if (silent := after.aggregation.silent) is not None:
        better &= ~silent(after.counts)
    if (formed := _formed(pair, name)) is not None:
        better &= formed
    return better


def _formed(pair: Pair, name: str) -> np.ndarray | None:
    """(n,) whether the edited model's output has the asked form; None where a metric has nothing to do with that."""
    valid = pair.edited.metrics.get(FORMAT)
    if name == FORMAT or valid is None or not valid.aggregation.is_mean:
        return None
    if not pair.edited.metrics[name].aggregation.of_output:
        return None
    formed: np.ndarray = valid.counts[:, 0] != 0
    return formed


def flips_of(pair: Pair, name: str) -> Flips:
    """How many documents a metric has lost and won."""
    worse = gains(pair.base.metrics[name], pair.edited.metrics[name]) < 0
    formed = _formed(pair, name)
    lost_format = None if formed is None else int((worse & ~formed).sum())
    n_worse = int(worse.sum())
    return Flips(
        worse=n_worse,
        better=int(won(pair, name).sum()),
        lost_format=lost_format,
        lost_ability=None if lost_format is None else n_worse - lost_format,
        answers=int(pair.answers_changed.sum()),
    )
