"""Pictures of a sweep show the folder's numbers, their intervals, and what is missing."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures need the extra plots")

from lm_eval_edit.plots import choice, gaps
from lm_eval_edit.plots.series import all_series, interval, mean_score, retained, score
from lm_eval_edit.sweep.reading import Value, load_sweep, summary_rows
from tests.support.plotted import draw, figure_of, lines_of, words_of
from tests.support.sweep_folders import SUITE, write_sweep

COUNTS = [0, 5, 10, 15, 20]


def test_eight_lines_and_their_mean_are_the_folders_values(sweeps):
    (picture,) = draw(sweeps["rome"], "tasks")
    lines = {name: line for name, line in lines_of(picture).items() if not name.startswith("published")}
    assert list(lines) == [task.removeprefix("edithurt_") for task in SUITE] + ["mean"]
    for name, line in lines.items():
        task = "edithurt_suite" if name == "mean" else f"edithurt_{name}"
        expected = [figure_of(sweeps["rome"], "gpt2-xl/rome-zsre-seed0", n, task) for n in COUNTS]
        assert line.get_xdata().tolist() == COUNTS and line.get_ydata() == pytest.approx(expected), name
    assert picture.figure.axes[0].get_ylim()[0] <= 0 and picture.figure.axes[0].get_ylim()[1] >= 1
    last = figure_of(sweeps["rome"], "gpt2-xl/rome-zsre-seed0", 20, "edithurt_gsm8k")
    assert f"gsm8k from 1.00 at 0 to {last:.2f} at 20;" in picture.alt


def test_one_seed_has_a_band_of_one_standard_error(sweeps):
    (series,) = all_series(load_sweep(sweeps["rome"]))
    line = series.line("sst2", score("edithurt_sst2", "score"))
    for point in line.known:
        row = "gpt2-xl/rome-zsre-seed0"
        error = figure_of(sweeps["rome"], row, point.n_edits, "edithurt_sst2", "score_stderr")
        assert point.high - point.value == pytest.approx(error) == pytest.approx(point.value - point.low)
    assert any(point.high > point.value for point in line.known)
    (picture,) = draw(sweeps["rome"], "tasks")
    (band,) = [c for c in picture.figure.axes[0].collections if c.get_label() == "_interval sst2"]
    drawn = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert {(point.n_edits, round(point.high, 6)) for point in line.known} <= drawn


def test_several_seeds_have_students_interval(sweeps):
    # t with 1 degree of freedom at 97.5 % is 12.7062, with 2 it is 4.30265.
    assert interval([Value(0.4, 0.1), Value(0.6, 0.1)]) == pytest.approx((0.5, 0.5 - 1.270620, 0.5 + 1.270620))
    half = 4.30265 * math.sqrt(0.01) / math.sqrt(3)
    assert interval([Value(v, None) for v in (0.4, 0.5, 0.6)]) == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-5)
    rows = [f"demo/rome-demo-seed{seed}" for seed in (0, 1)]
    pair = [figure_of(sweeps["seeds"], row, 5, "edithurt_conll2003") for row in rows]
    assert pair[0] != pair[1]
    half = 12.7062047 * abs(pair[0] - pair[1]) / 2  # s = |a - b| / sqrt 2, over sqrt 2
    picture = next(p for p in draw(sweeps["seeds"], "tasks") if p.name == "tasks-demo-rome")
    (bars,) = [c for c in picture.figure.axes[0].collections if c.get_label() == "_interval conll2003"]
    at_five = next(bar for bar in bars.get_segments() if bar[0][0] == 5)
    assert at_five[:, 1] == pytest.approx([np.mean(pair) - half, np.mean(pair) + half])
    assert "95 % t interval of the mean over 2 edit seeds" in words_of(picture)


def test_a_mean_of_tasks_has_the_suites_figure_and_error(sweeps):
    row = load_sweep(sweeps["rome"]).rows[0]
    for cell in (row.baseline, *row.cells):
        suite, mean = cell.value("edithurt_suite"), mean_score(SUITE, "score")(row, cell)
        assert mean.value == pytest.approx(suite.value) and mean.stderr == pytest.approx(suite.stderr)
    cut = mean_score([*SUITE, "edithurt_absent"], "score")
    assert cut(row, row.baseline) is None, "a mean over fewer tasks would be another figure"


def test_with_many_tasks_some_are_lines_and_the_mean_is_over_all(sweeps, monkeypatch):
    monkeypatch.setattr(choice, "MOST_TASKS", 3)
    (picture,) = draw(sweeps["rome"], "tasks")
    assert [name for name in lines_of(picture) if "published" not in name] == ["gsm8k", "rte", "nq", "mean"]
    expected = [figure_of(sweeps["rome"], "gpt2-xl/rome-zsre-seed0", n, "edithurt_suite") for n in COUNTS]
    assert lines_of(picture)["mean"].get_ydata() == pytest.approx(expected)
    assert "3 of 8 tasks are shown; the mean is over all of them" in words_of(picture)
    assert "8 tasks: the first 3 have a line" in choice.choose(load_sweep(sweeps["rome"]))[0].notices[0]
    (bars,) = draw(sweeps["at_once"], "batch")
    assert len(bars.figure.axes[0].get_xticks()) == 4


def test_what_is_retained_by_hand(sweeps):
    row = load_sweep(sweeps["rome"]).rows[0]
    before, after = row.baseline.value("edithurt_suite"), row.cells[0].value("edithurt_suite")
    found = retained(SUITE, "score")(row, row.cells[0])
    assert found.value == pytest.approx(after.value / before.value)
    relative = math.hypot(after.stderr / after.value, before.stderr / before.value)
    assert found.stderr == pytest.approx(found.value * relative)


def test_what_is_retained_where_lower_is_better():
    def cell(n: int, value: float, stderr: float) -> SimpleNamespace:
        return SimpleNamespace(n_edits=n, value=lambda task, metric: Value(value, stderr, False))

    row = SimpleNamespace(baseline=cell(0, 10.0, 1.0))
    found = retained(["wikitext"], "perplexity")(row, cell(5, 40.0, 8.0))
    assert found.value == pytest.approx(0.25)
    assert found.stderr == pytest.approx(0.25 * math.hypot(0.1, 0.2))


def test_published_values_lie_behind_and_say_whose_they_are(sweeps):
    (picture,) = draw(sweeps["rome"], "tasks")
    published = lines_of(picture)["published gsm8k"]
    assert published.get_ydata() == pytest.approx([0.33, 0.39, 0.37, 0.36, 0.1])
    assert published.get_alpha() < 1 and published.get_zorder() < lines_of(picture)["gsm8k"].get_zorder()
    assert "2401.04700" in words_of(picture) and "of script, not score" in words_of(picture)
    (same,) = draw(sweeps["rome"], "tasks", metric="script")
    assert "not script" not in words_of(same) and "2401.04700" in words_of(same)


def test_another_methods_panel_has_only_the_unedited_models_published_values(tmp_path):
    write_sweep(tmp_path / "out", {"editors": "memit"}, preset="fig3_rome_gpt2xl", documents=4)
    (picture,) = draw(tmp_path / "out", "tasks")
    assert list(lines_of(picture)["published gsm8k"].get_xdata()) == [0]


def test_cells_without_figures_are_gaps_and_crosses(sweeps):
    sweep = load_sweep(sweeps["seeds"])
    rome, memit, _ = draw(sweeps["seeds"], "tasks")
    assert list(lines_of(rome)["collapsed"].get_xdata()) == [50] and "collapsed" in words_of(rome)
    assert np.isnan(lines_of(rome)["mean"].get_ydata()[-1])
    assert np.isnan(lines_of(memit)["mean"].get_ydata()).tolist() == [False, False, True, False, False]
    assert "collapsed" not in lines_of(memit) and "collapsed at 50" in rome.alt
    told = gaps(sweep)
    assert "demo/rome-demo-seed0/n00050: collapsed (perplexity 5.1e+06, unedited 12.3)" in told
    assert "demo/memit-demo-seed1/n00005: not there yet" in told
    assert "demo/random-like_rome-demo-seed0/n00020: failed (edithurt_sst2: RuntimeError: out of memory)" in told
    assert len(told) == 6


def test_a_seed_that_has_not_begun_is_left_out_and_one_that_has_is_a_gap(tmp_path):
    folder = write_sweep(tmp_path / "out", {"edit_seeds": [0, 1, 2], "n_edits": [1, 5]}, documents=4)
    for cell in ("rome-demo-seed1/n00005", "rome-demo-seed2/n00001", "rome-demo-seed2/n00005"):
        shutil.rmtree(folder / "demo" / cell)
    (series,) = all_series(load_sweep(folder))
    line = series.line("mean", mean_score(SUITE, "score"))
    assert [point and point.seeds for point in line.points] == [2, 2, None]


def test_a_seed_that_only_failed_is_a_gap(tmp_path):
    """As if the others alone had been asked for, the mean over them would flatter."""
    folder = write_sweep(tmp_path / "out", {"edit_seeds": [0, 1], "n_edits": [1, 5]}, documents=4)
    for n in (1, 5):
        file = folder / f"demo/rome-demo-seed1/n{n:05d}/cell.json"
        file.write_text(json.dumps({"status": "failed", "reason": "out of memory", "files": {}}))
    (series,) = all_series(load_sweep(folder))
    line = series.line("mean", mean_score(SUITE, "score"))
    assert [point and point.seeds for point in line.points] == [2, None, None]
    shutil.rmtree(folder / "demo/rome-demo-seed0")
    assert all_series(load_sweep(folder)) == [], "nothing at all came of it"


def test_checkpoints_left_out_are_named(tmp_path):
    left_out = {"memit-demo-seed0-at_once": {2000: "demo has 1020 usable facts"}}
    design = {"editors": [{"editor": "memit", "edit_batch_size": "all"}], "n_edits": [10, 2000]}
    folder = write_sweep(tmp_path / "out", design, documents=4, left_out=left_out)
    sweep = load_sweep(folder)
    assert json.loads((folder / "sweep.json").read_text())["rows"][0]["checkpoints"] == [10]
    assert gaps(sweep) == ["demo/memit-demo-seed0-at_once/n02000: left out (demo has 1020 usable facts)"]
    assert [cell.n_edits for cell in sweep.rows[0].cells] == [10], "there is nothing to wait for"
    assert [cell.n_edits for _, cell in sweep.cells()] == [0, 10]
    assert ",0,all,2000,1,left out," in (folder / "summary.csv").read_text()
    assert [line["n_edits"] for line in summary_rows(sweep) if line["status"] == "left out"] == [2000]


def test_one_collapsed_seed_of_several_is_said_to_be_one(tmp_path):
    """The other seed went on; in the end neither did."""
    design = {"editors": ["rome", "memit"], "edit_seeds": [0, 1], "n_edits": [1, 5, 20, 50]}
    folder = write_sweep(tmp_path / "out", design, documents=4, states={("rome", 50): "collapsed"})
    file = folder / "demo/rome-demo-seed1/n00020/cell.json"
    file.write_text(json.dumps({"status": "collapsed", "reason": "perplexity", "files": {}}))
    (series, _) = all_series(load_sweep(folder))
    assert series.collapsed == {20: 1, 50: 2}
    methods, rome, tradeoff = (draw(folder, kind)[0] for kind in ("methods", "tasks", "tradeoff"))
    assert "rome, × from 20 (1 of 2 seeds)" in words_of(methods)
    told = "rome collapsed (1 of 2 seeds) at 20 edits, collapsed at 50 edits"
    assert told in methods.alt and told in rome.alt
    assert {"collapsed (1 of 2 seeds)", "collapsed"} <= {text.get_text() for text in rome.figure.axes[0].texts}
    assert "rome, 5 edits, then collapsed (1 of 2 seeds)" in words_of(tradeoff)
    design = {"editors": [{"editor": "memit", "edit_batch_size": "all"}], "edit_seeds": [0, 1], "n_edits": [1, 5]}
    folder = write_sweep(tmp_path / "at_once", design, documents=4)
    file = folder / "demo/memit-demo-seed1-at_once/n00005/cell.json"
    file.write_text(json.dumps({"status": "collapsed", "reason": "perplexity", "files": {}}))
    (bars,) = draw(folder, "batch")
    assert "5 collapsed (1 of 2 seeds)" in [text.get_text() for text in bars.figure.axes[0].get_legend().get_texts()]


def test_every_cross_is_inside_its_panel(tmp_path):
    states = {("memit", 250): "collapsed", ("memit", 500): "collapsed"}
    design = {"editors": ["memit"], "edit_batch_size": [1, 10, 50], "n_operations": [5, 10], "n_edits": None}
    folder = write_sweep(tmp_path / "out", design, documents=4, states=states)
    design = {"editors": ["memit"], "edit_batch_size": [10], "n_edits": [10, 40]}
    alone = write_sweep(tmp_path / "alone", design, documents=4, states={("memit", 40): "collapsed"})
    crosses = 0
    for picture in draw(folder) + draw(alone):
        for axes in picture.figure.axes:
            for line in axes.lines:
                if line.get_label() == "collapsed":
                    low, high = axes.get_xlim()
                    crosses += 1
                    assert all(low <= x <= high for x in line.get_xdata()), picture.name
    assert crosses > 20


def test_seeds_that_agree_have_no_interval():
    for values in ([0.1] * 2, [0.1] * 3, [0.7] * 6):
        assert interval([Value(value, 0.1) for value in values]) == (values[0],) * 3


def test_the_small_print_names_the_lines_where_intervals_differ_in_kind(tmp_path):
    folder = write_sweep(tmp_path / "out", {"editors": ["rome", "memit"], "edit_seeds": [0, 1], "n_edits": [1, 5]})
    assert "thin lines: 95 % t interval of the mean over 2 edit seeds" in words_of(draw(folder, "methods")[0])
    for n in (1, 5):
        shutil.rmtree(folder / f"demo/memit-demo-seed1/n{n:05d}")
    (picture,) = draw(folder, "methods")
    assert "thin lines of memit: ± 1 standard error over documents" in words_of(picture)
    assert "thin lines of rome: 95 % t interval of the mean over 2 edit seeds, none" in words_of(picture)


def test_a_method_that_collapsed_at_once_is_still_shown(tmp_path):
    states = {("kn", 1): "collapsed", ("kn", 5): "collapsed"}
    design = {"editors": ["rome", "kn"], "n_edits": [1, 5], "edit_seeds": [0]}
    folder = write_sweep(tmp_path / "out", design, documents=4, states=states)
    methods, tradeoff = draw(folder, "methods", "tradeoff")
    assert "kn, × from 1" in words_of(methods) and "kn collapsed at 1, 5 edits" in methods.alt
    assert "kn: no point, collapsed at 1 edits already" in words_of(tradeoff) and "kn: no point" in tradeoff.alt
    _, panel = draw(folder, "tasks")
    assert list(lines_of(panel)["collapsed"].get_xdata()) == [1, 5]
    alone = write_sweep(tmp_path / "alone", design | {"editors": "kn"}, documents=4, states=states)
    assert [picture.kind for picture in draw(alone)] == ["tasks"]


def test_methods_are_lines_of_one_panel(sweeps):
    (picture,) = draw(sweeps["seeds"], "methods")
    lines = lines_of(picture)
    assert [name for name in lines if name != "collapsed"] == ["rome", "memit", "random-like_rome"]
    both = [figure_of(sweeps["seeds"], f"demo/memit-demo-seed{seed}", 20, "edithurt_suite") for seed in (0, 1)]
    assert lines["memit"].get_ydata()[3] == pytest.approx(np.mean(both))
    assert "rome, × from 50" in words_of(picture)


def test_bars_are_the_scores_after_one_batch(sweeps):
    (picture,) = draw(sweeps["at_once"], "batch")
    axes = picture.figure.axes[0]
    bars = {group.get_label(): [bar.get_height() for bar in group] for group in axes.containers if len(group) == 9}
    assert list(bars) == ["unedited", "1", "10", "100", "1,000", "2,000"]
    tasks = [*SUITE, "edithurt_suite"]
    for label, heights in bars.items():
        n = 0 if label == "unedited" else int(label.replace(",", ""))
        row = "gpt2-xl/memit-zsre-seed0-at_once"
        assert heights == pytest.approx([figure_of(sweeps["at_once"], row, n, task) for task in tasks])
    assert "3,000 collapsed" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert picture.alt.startswith("Bar chart") and "tasks" not in {p.kind for p in draw(sweeps["at_once"])}


def test_batches_in_sequence_are_small_panels_over_operations(sweeps):
    (picture,) = draw(sweeps["operations"], "operations")
    assert len(picture.figure.axes) == 9
    lines = [line for line in picture.figure.axes[0].lines if line.get_label() == "gsm8k"]
    assert len(lines) == 3
    for line, size in zip(lines, (10, 30, 50), strict=True):
        assert list(line.get_xdata()) == [0, 10, 20, 30, 40, 50]
        row = f"gpt2-xl/memit-zsre-seed0-batch{size}"
        expected = [figure_of(sweeps["operations"], row, n * size, "edithurt_gsm8k") for n in (0, 10, 20, 30, 40, 50)]
        assert line.get_ydata() == pytest.approx(expected)
    assert {text.get_text() for text in picture.figure.legends[0].get_texts()} == {"10", "30", "50"}


def test_the_tradeoff_is_a_point_a_method(sweeps):
    (picture,) = draw(sweeps["seeds"], "tradeoff")
    last = {line.get_label(): line for line in picture.figure.axes[0].lines if line.get_label().startswith("_last")}
    assert list(last) == ["_last rome", "_last memit", "_last random-like_rome"]
    (x,), (y,) = last["_last memit"].get_data()
    rows = [f"demo/memit-demo-seed{seed}" for seed in (0, 1)]
    assert x == pytest.approx(np.mean([figure_of(sweeps["seeds"], row, 50, "edithurt_efficacy") for row in rows]))
    left = np.mean([figure_of(sweeps["seeds"], row, 50, "edithurt_suite") for row in rows])
    assert y == pytest.approx(left / figure_of(sweeps["seeds"], rows[0], 0, "edithurt_suite"))
    assert "rome, 20 edits" in words_of(picture) and "efficacy" in picture.figure.axes[0].get_xlabel()


def test_without_the_editing_tasks_the_tradeoff_takes_what_the_edits_recorded(sweeps):
    (picture,) = draw(sweeps["rome"], "tradeoff")
    assert "em after the last edit" in picture.figure.axes[0].get_xlabel()
    (file,) = (sweeps["rome"] / "gpt2-xl/rome-zsre-seed0/n00020").glob("results_*.json")
    recorded = json.loads(file.read_text())["config"]["edit"]["guards"]["retained"]["em"]
    (line,) = [line for line in picture.figure.axes[0].lines if line.get_label() == "_last rome"]
    assert line.get_xdata()[0] == pytest.approx(recorded)


def test_norms_are_a_line_a_matrix(sweeps):
    picture = next(p for p in draw(sweeps["seeds"], "norms") if "memit" in p.name)
    lines = lines_of(picture)
    assert list(lines) == ["layer 3 mlp.c_proj", "layer 4 mlp.c_proj", "layer 5 mlp.c_proj"]
    (file,) = (sweeps["seeds"] / "demo/memit-demo-seed0/n00020").glob("results_*.json")
    recorded = json.loads(file.read_text())["config"]["edit"]["parameters"]["transformer.h.4.mlp.c_proj.weight"]
    assert lines["layer 4 mlp.c_proj"].get_ydata()[3] == pytest.approx(recorded["relative_norm"])
