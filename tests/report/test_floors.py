"""What reports and pictures show of tasks at floor."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_edit.comparison.compare import Settings
from lm_eval_edit.plots import choose
from lm_eval_edit.report import budget
from lm_eval_edit.report.comparing import compare_sweep
from lm_eval_edit.report.page import render
from lm_eval_edit.sweep.reading import load_sweep, summary_rows
from tests.support.results_files import sample, samples


def right(n: int, k: int) -> list[float]:
    """n zeros and ones, the first k of them ones."""
    return [1.0] * k + [0.0] * (n - k)


def sweep_of(folder: Path):
    """A sweep of two tasks, one of which the unedited model cannot do."""
    from tests.support.sweep_folders import write_cells

    def rows(k):
        return [sample(i, {"score": value}) for i, value in enumerate(right(100, k))]

    cells = {0: {"can": rows(90), "cannot": rows(2)}, 5: {"can": rows(60), "cannot": rows(0)}}
    return load_sweep(write_cells(folder, cells, tasks=["can", "cannot"]))


def test_the_budget_leaves_out_what_is_at_floor(tmp_path):
    sweep = sweep_of(tmp_path / "x")
    (each,) = compare_sweep(sweep, Settings())
    assert list(each.able) == ["can"] and each.mean.at_floor == ("cannot",)
    for scope in (budget.MEAN, budget.WORST):
        assert budget.drops([each], scope, certain=False) == [(5, pytest.approx(0.3))]
        assert budget.drops([each], scope, certain=True)[0][1] > 0.3
    page = render(sweep, [])
    assert "the unedited demo is at floor: cannot show damage (cannot: 0.02, only 2 of 100 documents score)" in page
    assert "at floor: cannot show damage (0.02" in page.split('id="summary"')[1], "beside its figure too"
    assert "1 of 2 at floor" in page


def test_a_budget_of_nothing_but_floors_is_none(tmp_path):
    from tests.support.sweep_folders import write_cells

    cells = {n: {"t": samples(right(50, 0) if n else right(50, 1), "score")} for n in (0, 5)}
    (each,) = compare_sweep(load_sweep(write_cells(tmp_path / "x", cells)), Settings())
    assert str(budget.budget(budget.drops([each], budget.WORST, certain=False), 0.1)) == "–"


def test_a_mean_of_a_report_is_of_ability(tmp_path):
    from tests.support.sweep_folders import write_cells

    def rows(k):
        return [sample(i, {"score": value}) for i, value in enumerate(right(100, k))]

    names = ("a", "b", "edithurt_efficacy")
    cells = {
        n: {name: rows(k) for name, k in zip(names, ks, strict=True)}
        for n, ks in {0: (90, 80, 0), 5: (60, 70, 99)}.items()
    }
    sweep = load_sweep(write_cells(tmp_path / "x", cells, tasks=["a", "b"]))
    (each,) = compare_sweep(sweep, Settings())
    assert list(each.mean.members) == ["a", "b"] and each.mean.difference.value == pytest.approx(-0.2)
    assert budget.drops([each], budget.WORST, certain=False) == [(5, pytest.approx(0.3))]
    assert {row["measures"] for row in summary_rows(sweep) if row["task"] == "edithurt_efficacy"} == {"edit_quality"}


def test_pictures_say_what_is_at_floor_and_average_ability_alone(tmp_path):
    (choice,) = choose(sweep_of(tmp_path / "x"))
    assert choice.at_floor(choice.series) == ["at floor: cannot show damage: cannot"]
    (choice,) = choose(load_sweep(quality_sweep(tmp_path / "y")), tasks=["a", "b", "mine"])
    assert choice.averaged == ("a", "b")
    assert choice.series[0].line("mean", choice.measures()["mean"]).known[-1].value == pytest.approx(0.65)


def quality_sweep(root: Path) -> Path:
    from tests.support import sweep_folders

    def rows(k):
        return [sample(i, {"score": value}) for i, value in enumerate(right(100, k))]

    plain = sweep_folders._results

    def results(given, edit):
        found = plain(given, edit)
        found["configs"]["mine"]["metadata"] = {"measures": "edit_quality"}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_folders, "_results", results)
        counts = {0: (90, 80, 0), 5: (60, 70, 99)}
        cells = {n: dict(zip(("a", "b", "mine"), map(rows, each), strict=True)) for n, each in counts.items()}
        return sweep_folders.write_cells(root, cells, tasks=["a", "b", "mine"])


def test_no_share_of_next_to_nothing_is_drawn(tmp_path):
    from lm_eval_edit.plots.series import retained

    sweep = sweep_of(tmp_path / "x")
    row = sweep.rows[0]
    assert retained(["cannot"], "score")(row, row.cells[0]) is None
    assert retained(["can"], "score")(row, row.cells[0]).value == pytest.approx(2 / 3)
