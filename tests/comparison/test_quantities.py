"""Log-probabilities and perplexities are no shares: no floor, no recovery, no mean with scores, no share in a gate."""

from __future__ import annotations

import math

import pytest

from lm_eval_edit.comparison.check import PASS, REGRESSION, Gate, TaskLimits, check, limit
from lm_eval_edit.comparison.compare import REGRESSED, Settings, compare_runs
from lm_eval_edit.comparison.floors import floor
from lm_eval_edit.comparison.group_means import OVERALL
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib import measures
from tests.support.results_files import sample, write_run

QUANTITY = {"metadata": {"version": 1.0, "quantities": ["gold_logprob", "bits"], "chance": 0.5}}


def written(folder, tasks, **layout):
    """Task -> metric -> value of each document; a run with them."""
    rows = {
        task: [
            sample(i, dict(zip(metrics, values, strict=True)))
            for i, values in enumerate(zip(*metrics.values(), strict=True))
        ]
        for task, metrics in tasks.items()
    }
    return load_run(write_run(folder, rows, configs=dict.fromkeys(tasks, QUANTITY), **layout))


def both(tmp_path, base, edited, settings=None, **layout):
    return compare_runs(written(tmp_path / "a", base, **layout), written(tmp_path / "b", edited, **layout), settings)


@pytest.mark.parametrize(("said", "found"), [(["a", "b"], {"a", "b"}), ("a", set()), (None, set()), ([1, "a"], {"a"})])
def test_a_task_names_its_quantities(said, found):
    assert measures.quantities({"metadata": {"quantities": said}}) == found
    assert measures.quantities({}) == frozenset()


def test_a_quantity_has_no_floor_whatever_its_values(tmp_path):
    """A perfect model's log-probabilities are all 0, which as a share would be the worst there is."""
    run = written(tmp_path, {"t": {"score": [1.0] * 20, "gold_logprob": [0.0] * 20}})
    metric = run.samples["t", "none"].metrics["gold_logprob"]
    assert metric.bounds == (-math.inf, math.inf) and metric.chance is None
    assert floor(run.samples["t", "none"], "gold_logprob") is None
    assert run.samples["t", "none"].metrics["score"].chance == 0.5


def test_it_is_paired_by_documents_and_has_no_recovery(tmp_path):
    base = [-1.0 - i / 10 for i in range(40)]
    edited = [value - 0.3 for value in base]
    comparison = both(tmp_path, {"t": {"gold_logprob": base}}, {"t": {"gold_logprob": edited}})
    (row,) = comparison.rows
    assert row.difference.value == pytest.approx(-0.3) and row.verdict == REGRESSED and not row.bounded
    assert row.recovery is None and "no amount of which a share could be left" in row.recovery_undefined
    assert row.difference.high - row.difference.low < 0.1, "the documents' own spread is out of it"


def test_no_mean_takes_a_quantity_in_among_scores(tmp_path):
    scores = {"a": {"score": [1.0] * 30}, "b": {"score": [1.0] * 15 + [0.0] * 15}}
    with_text = scores | {"p": {"bits": [1.5] * 30}}
    worse = scores | {"p": {"bits": [2.5] * 30}}
    comparison = both(tmp_path, with_text, worse, better={"bits": False})
    (mean,) = [row for row in comparison.groups if row.task == OVERALL]
    assert set(mean.members) == {"a", "b"} and mean.base == 0.75
    (bits,) = [row for row in comparison.rows if row.task == "p"]
    assert bits.verdict == REGRESSED and bits.recovery == pytest.approx(1.5 / 2.5)


def test_nor_where_a_quantity_is_named_for_a_tasks_headline(tmp_path):
    tasks = {name: {"score": [1.0] * 20, "gold_logprob": [-2.0] * 20} for name in ("a", "b", "c")}
    chosen = Settings(headlines={"c": "gold_logprob"})
    (mean,) = [row for row in both(tmp_path, tasks, tasks, chosen).groups if row.task == OVERALL]
    assert set(mean.members) == {"a", "b"} and mean.metric == "score"
    chosen = Settings(headlines=dict.fromkeys("abc", "gold_logprob"))
    (mean,) = [row for row in both(tmp_path / "all", tasks, tasks, chosen).groups if row.task == OVERALL]
    assert set(mean.members) == {"a", "b", "c"} and mean.base == -2.0


def test_a_gate_wants_a_drop_of_the_quantitys_own(tmp_path):
    base = written(tmp_path / "a", {"t": {"gold_logprob": [-2.0 - i / 100 for i in range(50)]}})
    worse = written(tmp_path / "b", {"t": {"gold_logprob": [-2.3 - i / 100 for i in range(50)]}})
    with pytest.raises(UserError, match="not on the scale from 0 to 1"):
        check(base, worse, Gate(max_drop=0.02))
    with pytest.raises(UserError, match="no amount of which a share could be left"):
        check(base, worse, Gate(max_drop=None, min_recovery=0.9))
    assert check(base, worse, Gate(tasks={"t": TaskLimits(max_drop=0.1)})).status == REGRESSION
    assert check(base, worse, Gate(tasks={"t": TaskLimits(max_drop=0.4)})).status == PASS
    both_limits = Gate(max_drop=0.02, min_recovery=0.9, tasks={"t": TaskLimits(max_drop=0.4)})
    assert limit("t", base.samples["t", "none"].metrics["gold_logprob"], both_limits) == 0.4
    assert check(base, worse, both_limits).status == PASS
