"""Pictures of a sweep: they show the folder's numbers, in grey as well, and their words do not cover each other."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures need the extra plots")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.plots import figures, gaps
from lm_eval_edit.plots.choice import choose
from lm_eval_edit.plots.series import all_series, interval, mean_score, retained, score
from lm_eval_edit.plots.style import MARKERS, look, ramp, share_axis, spread
from lm_eval_edit.sweep.reading import Value, load_sweep
from tests.helpers import python
from tests.sweep_folders import SUITE, write_sweep

ROOT = Path(__file__).resolve().parents[1]
COUNTS = [0, 5, 10, 15, 20]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sweeps")
    many = ["rome", "memit", "kn", "ft", "r_rome", "alphaedit", "emmet", "mend", "lora", "rect", "prune"]
    designs = {
        "rome": write_sweep(root / "rome", preset="fig3_rome_gpt2xl", documents=8),
        "seeds": write_sweep(
            root / "seeds",
            {
                "editors": ["rome", "memit", {"editor": "random", "like": "rome"}], "edit_seeds": [0, 1],
                "n_edits": [1, 5, 20, 50], "tasks": ["edithurt_suite", "edithurt_editing"],
            },
            states={("rome", 50): "collapsed", ("memit", 5): "missing", ("random-like_rome", 20): "failed"},
            documents=12,
        ),
        "at_once": write_sweep(
            root / "at_once", preset="fig4_memit_gpt2xl", documents=8, states={("memit", 3000): "collapsed"}
        ),
        "operations": write_sweep(root / "operations", preset="fig6_memit_gpt2xl", documents=8),
        "many": write_sweep(root / "many", {"editors": many, "n_edits": [1, 50]}, documents=8),
    }  # fmt: skip
    return designs


def draw(folder: Path, *kinds: str, **options):
    return figures(load_sweep(folder), kinds=kinds or None, **options)


def figure_of(folder: Path, row: str, n: int, task: str, key: str = "score") -> float:
    """The folder's own number, read without any of our code."""
    (file,) = (folder / row / f"n{n:05d}" if n else folder / row.split("/")[0] / "unedited").glob("results_*.json")
    return json.loads(file.read_text())["results"][task][f"{key},none"]


def lines_of(picture, axes: int = 0) -> dict:
    """Label -> line, of the lines that are data."""
    return {line.get_label(): line for line in picture.figure.axes[axes].lines if not line.get_label().startswith("_")}


# ------------------------------------------------------------------------------------------------------------- numbers


def test_eight_lines_and_their_mean_are_the_folders_values(folders):
    (picture,) = draw(folders["rome"], "tasks")
    lines = {name: line for name, line in lines_of(picture).items() if not name.startswith("published")}
    assert list(lines) == [task.removeprefix("edithurt_") for task in SUITE] + ["mean"]
    for name, line in lines.items():
        task = "edithurt_suite" if name == "mean" else f"edithurt_{name}"
        expected = [figure_of(folders["rome"], "gpt2-xl/rome-zsre-seed0", n, task) for n in COUNTS]
        assert line.get_xdata().tolist() == COUNTS and line.get_ydata() == pytest.approx(expected), name
    assert picture.figure.axes[0].get_ylim()[0] <= 0 and picture.figure.axes[0].get_ylim()[1] >= 1
    last = figure_of(folders["rome"], "gpt2-xl/rome-zsre-seed0", 20, "edithurt_gsm8k")
    assert f"gsm8k from 1.00 at 0 to {last:.2f} at 20;" in picture.alt


def test_one_seed_has_a_band_of_one_standard_error(folders):
    (series,) = all_series(load_sweep(folders["rome"]))
    line = series.line("sst2", score("edithurt_sst2", "score"))
    for point in line.known:
        row = "gpt2-xl/rome-zsre-seed0"
        error = figure_of(folders["rome"], row, point.n_edits, "edithurt_sst2", "score_stderr")
        assert point.high - point.value == pytest.approx(error) == pytest.approx(point.value - point.low)
    assert any(point.high > point.value for point in line.known)
    (picture,) = draw(folders["rome"], "tasks")
    (band,) = [c for c in picture.figure.axes[0].collections if c.get_label() == "_interval sst2"]
    drawn = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert {(point.n_edits, round(point.high, 6)) for point in line.known} <= drawn


def test_several_seeds_have_students_interval(folders):
    # t with 1 degree of freedom at 97.5 % is 12.7062, with 2 it is 4.30265.
    assert interval([Value(0.4, 0.1), Value(0.6, 0.1)]) == pytest.approx((0.5, 0.5 - 1.270620, 0.5 + 1.270620))
    half = 4.30265 * math.sqrt(0.01) / math.sqrt(3)
    assert interval([Value(v, None) for v in (0.4, 0.5, 0.6)]) == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-5)
    rows = [f"demo/rome-demo-seed{seed}" for seed in (0, 1)]
    pair = [figure_of(folders["seeds"], row, 5, "edithurt_conll2003") for row in rows]
    assert pair[0] != pair[1]
    half = 12.7062047 * abs(pair[0] - pair[1]) / 2  # s = |a - b| / sqrt 2, over sqrt 2
    picture = next(p for p in draw(folders["seeds"], "tasks") if p.name == "tasks-demo-rome")
    (bars,) = [c for c in picture.figure.axes[0].collections if c.get_label() == "_interval conll2003"]
    at_five = next(bar for bar in bars.get_segments() if bar[0][0] == 5)
    assert at_five[:, 1] == pytest.approx([np.mean(pair) - half, np.mean(pair) + half])
    assert "95 % t interval of the mean over 2 edit seeds" in words_of(picture)


def test_a_mean_of_tasks_has_the_suites_figure_and_error(folders):
    row = load_sweep(folders["rome"]).rows[0]
    for cell in (row.baseline, *row.cells):
        suite, mean = cell.value("edithurt_suite"), mean_score(SUITE, "score")(row, cell)
        assert mean.value == pytest.approx(suite.value) and mean.stderr == pytest.approx(suite.stderr)
    cut = mean_score([*SUITE, "edithurt_absent"], "score")
    assert cut(row, row.baseline) is None, "a mean over fewer tasks would be another figure"


def test_what_is_retained_by_hand(folders):
    row = load_sweep(folders["rome"]).rows[0]
    before, after = row.baseline.value("edithurt_suite"), row.cells[0].value("edithurt_suite")
    found = retained(SUITE, "score")(row, row.cells[0])
    assert found.value == pytest.approx(after.value / before.value)
    relative = math.hypot(after.stderr / after.value, before.stderr / before.value)
    assert found.stderr == pytest.approx(found.value * relative)


def test_what_is_retained_where_lower_is_better():
    def cell(n: int, value: float, stderr: float) -> SimpleNamespace:
        return SimpleNamespace(n_edits=n, value=lambda task, metric: Value(value, stderr, 10, False))

    row = SimpleNamespace(baseline=cell(0, 10.0, 1.0))
    found = retained(["wikitext"], "perplexity")(row, cell(5, 40.0, 8.0))
    assert found.value == pytest.approx(0.25)
    assert found.stderr == pytest.approx(0.25 * math.hypot(0.1, 0.2))


def test_published_values_lie_behind_and_say_whose_they_are(folders):
    (picture,) = draw(folders["rome"], "tasks")
    published = lines_of(picture)["published gsm8k"]
    assert published.get_ydata() == pytest.approx([0.33, 0.39, 0.37, 0.36, 0.1])
    assert published.get_alpha() < 1 and published.get_zorder() < lines_of(picture)["gsm8k"].get_zorder()
    assert "2401.04700" in words_of(picture) and "of script, not score" in words_of(picture)
    (same,) = draw(folders["rome"], "tasks", metric="script")
    assert "not script" not in words_of(same) and "2401.04700" in words_of(same)


def test_another_methods_panel_has_only_the_unedited_models_published_values(tmp_path):
    write_sweep(tmp_path / "out", {"editors": "memit"}, preset="fig3_rome_gpt2xl", documents=4)
    (picture,) = draw(tmp_path / "out", "tasks")
    assert list(lines_of(picture)["published gsm8k"].get_xdata()) == [0]


def test_cells_without_figures_are_gaps_and_crosses(folders):
    sweep = load_sweep(folders["seeds"])
    rome, memit, _ = draw(folders["seeds"], "tasks")
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
        (folder / "demo" / cell / "cell.json").unlink()
    (series,) = all_series(load_sweep(folder))
    line = series.line("mean", mean_score(SUITE, "score"))
    assert [point and point.seeds for point in line.points] == [2, 2, None]


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


def test_methods_are_lines_of_one_panel(folders):
    (picture,) = draw(folders["seeds"], "methods")
    lines = lines_of(picture)
    assert [name for name in lines if name != "collapsed"] == ["rome", "memit", "random-like_rome"]
    both = [figure_of(folders["seeds"], f"demo/memit-demo-seed{seed}", 20, "edithurt_suite") for seed in (0, 1)]
    assert lines["memit"].get_ydata()[3] == pytest.approx(np.mean(both))
    assert "rome, × from 50" in words_of(picture)


def test_bars_are_the_scores_after_one_batch(folders):
    (picture,) = draw(folders["at_once"], "batch")
    axes = picture.figure.axes[0]
    bars = {group.get_label(): [bar.get_height() for bar in group] for group in axes.containers if len(group) == 9}
    assert list(bars) == ["unedited", "1", "10", "100", "1,000", "2,000"]
    tasks = [*SUITE, "edithurt_suite"]
    for label, heights in bars.items():
        n = 0 if label == "unedited" else int(label.replace(",", ""))
        row = "gpt2-xl/memit-zsre-seed0-at_once"
        assert heights == pytest.approx([figure_of(folders["at_once"], row, n, task) for task in tasks])
    assert "3,000 collapsed" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert picture.alt.startswith("Bar chart") and "tasks" not in {p.kind for p in draw(folders["at_once"])}


def test_batches_in_sequence_are_small_panels_over_operations(folders):
    (picture,) = draw(folders["operations"], "operations")
    assert len(picture.figure.axes) == 9
    lines = [line for line in picture.figure.axes[0].lines if line.get_label() == "gsm8k"]
    assert len(lines) == 3
    for line, size in zip(lines, (10, 30, 50), strict=True):
        assert list(line.get_xdata()) == [0, 10, 20, 30, 40, 50]
        row = f"gpt2-xl/memit-zsre-seed0-batch{size}"
        expected = [figure_of(folders["operations"], row, n * size, "edithurt_gsm8k") for n in (0, 10, 20, 30, 40, 50)]
        assert line.get_ydata() == pytest.approx(expected)
    assert {text.get_text() for text in picture.figure.legends[0].get_texts()} == {"10", "30", "50"}


def test_the_tradeoff_is_a_point_a_method(folders):
    (picture,) = draw(folders["seeds"], "tradeoff")
    last = {line.get_label(): line for line in picture.figure.axes[0].lines if line.get_label().startswith("_last")}
    assert list(last) == ["_last rome", "_last memit", "_last random-like_rome"]
    (x,), (y,) = last["_last memit"].get_data()
    rows = [f"demo/memit-demo-seed{seed}" for seed in (0, 1)]
    assert x == pytest.approx(np.mean([figure_of(folders["seeds"], row, 50, "edithurt_efficacy") for row in rows]))
    left = np.mean([figure_of(folders["seeds"], row, 50, "edithurt_suite") for row in rows])
    assert y == pytest.approx(left / figure_of(folders["seeds"], rows[0], 0, "edithurt_suite"))
    assert "rome, 20 edits" in words_of(picture) and "efficacy" in picture.figure.axes[0].get_xlabel()


def test_without_the_editing_tasks_the_tradeoff_takes_what_the_edits_recorded(folders):
    (picture,) = draw(folders["rome"], "tradeoff")
    assert "em after the last edit" in picture.figure.axes[0].get_xlabel()
    (file,) = (folders["rome"] / "gpt2-xl/rome-zsre-seed0/n00020").glob("results_*.json")
    recorded = json.loads(file.read_text())["config"]["edit"]["guards"]["retained"]["em"]
    (line,) = [line for line in picture.figure.axes[0].lines if line.get_label() == "_last rome"]
    assert line.get_xdata()[0] == pytest.approx(recorded)


def test_norms_are_a_line_a_matrix(folders):
    picture = next(p for p in draw(folders["seeds"], "norms") if "memit" in p.name)
    lines = lines_of(picture)
    assert list(lines) == ["layer 3 mlp.c_proj", "layer 4 mlp.c_proj", "layer 5 mlp.c_proj"]
    (file,) = (folders["seeds"] / "demo/memit-demo-seed0/n00020").glob("results_*.json")
    recorded = json.loads(file.read_text())["config"]["edit"]["parameters"]["transformer.h.4.mlp.c_proj.weight"]
    assert lines["layer 4 mlp.c_proj"].get_ydata()[3] == pytest.approx(recorded["relative_norm"])


# --------------------------------------------------------------------------------------------------------------- looks


def words_of(picture) -> str:
    return "\n".join(text.get_text() for text in picture.figure.findobj(Text))


@pytest.mark.parametrize("name", ["rome", "seeds", "at_once", "operations", "many"])
def test_words_do_not_cover_each_other_and_are_not_cut(folders, name, monkeypatch):
    shown, paint = [], Text.draw

    def record(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            shown.append((text.get_text(), text.get_window_extent(renderer)))
        return paint(text, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", record)  # what is really drawn: ticks outside the axes are not
    for picture in draw(folders[name]):
        canvas = FigureCanvasAgg(picture.figure)
        shown.clear()
        canvas.draw()
        assert len(shown) > 8
        for (one, first), (other, second) in itertools.combinations(shown, 2):
            across = min(first.x1, second.x1) - max(first.x0, second.x0)
            along = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert across <= 1 or along <= 1, f"{picture.name}: {one!r} covers {other!r}"
        saved = picture.figure.get_tightbbox(canvas.get_renderer())  # inches
        for words, box in shown:
            inches = box.transformed(picture.figure.dpi_scale_trans.inverted())
            assert saved.x0 <= inches.x0 + 0.02 and inches.x1 <= saved.x1 + 0.02, words
            assert saved.y0 <= inches.y0 + 0.02 and inches.y1 <= saved.y1 + 0.02, words


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_lines_are_told_apart_without_colour(folders):
    for picture in draw(folders["rome"], "tasks") + draw(folders["many"], "methods"):
        lines = [line for name, line in lines_of(picture).items() if not name.startswith("published")]
        plain = [(line.get_marker(), line.get_linestyle() != "None" and line.get_linewidth()) for line in lines]
        assert len(lines) >= 9 and len(set(plain)) == len(plain)
    assert len({look(i) for i in range(88)}) == 88 and len(set(MARKERS)) == 11
    assert all(1.05 / (luminance(look(i).colour) + 0.05) > 2.1 for i in range(8)), "seen on white"


@pytest.mark.parametrize("fill", [True, False])
def test_ordered_things_go_from_light_to_dark(fill):
    shades = [luminance(style.colour) for style in ramp(6, fill=fill)]
    assert all(a - b > 0.015 for a, b in itertools.pairwise(shades))


def test_labels_keep_their_distance_and_their_order():
    places = spread([0.0, 0.0, 0.5, 0.01], 0.1)
    assert sorted(places)[0] >= 0 and np.diff(sorted(places)).min() >= 0.1 - 1e-12
    assert places[1] < places[0] < places[3] < places[2] == 0.5
    crowded = spread([1.0] * 5, 0.1)
    assert max(crowded) <= 1 and np.diff(sorted(crowded)).min() >= 0.1 - 1e-12


def test_the_axis_of_edits_is_true_to_scale(folders):
    (picture,) = draw(folders["rome"], "tasks")
    assert picture.figure.axes[0].get_xscale() == "linear"
    (picture,) = draw(folders["many"], "methods")
    axes = picture.figure.axes[0]
    assert axes.get_xscale() == "symlog" and "log scale" in axes.get_xlabel()
    assert axes.get_xlim()[0] < 0 and axes.get_xlim()[1] > 50


def test_a_metric_that_is_no_share_has_an_axis_of_its_own():
    figure = Figure()
    share, perplexity, exploded = figure.subplots(3)
    share_axis(share, [0.2, 0.9], "score")
    share_axis(perplexity, [12.0, 30.0], "perplexity")
    share_axis(exploded, [12.0, 3e6, math.inf], "perplexity")
    assert share.get_ylim()[1] == pytest.approx(1.02) and perplexity.get_ylim() == pytest.approx((0, 31.5))
    assert exploded.get_yscale() == "log" and "log scale" in exploded.get_ylabel()


# --------------------------------------------------------------------------------------------------------------- files


def test_the_same_numbers_give_the_same_bytes(folders):
    for first, again in zip(draw(folders["seeds"]), draw(folders["seeds"]), strict=True):
        for suffix in ("png", "svg"):
            assert first.bytes(suffix) == again.bytes(suffix) == first.bytes(suffix), first.name
        assert not re.search(rb"20\d\d-\d\d-\d\dT", first.bytes("svg"))


def test_a_users_own_matplotlib_settings_change_nothing(folders):
    import matplotlib

    (before,) = draw(folders["rome"], "tasks")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "figure.dpi": 300, "savefig.dpi": 40}):
        (after,) = draw(folders["rome"], "tasks")
        assert after.bytes("png") == before.bytes("png")


def test_pictures_stand_together_in_a_page(folders):
    pictures = draw(folders["seeds"])
    assert len({picture.name for picture in pictures}) == len(pictures)
    parts = [picture.svg for picture in pictures] + [pictures[0].inline("again")]
    page = ET.fromstring("<body>" + "".join(parts) + "</body>")
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) > 100 and len(set(ids)) == len(ids)
    targets = re.findall(r'href="#([^"]+)"', "".join(parts)) + re.findall(r"url\(#([^)]+)\)", "".join(parts))
    assert targets and set(targets) <= set(ids)
    assert "<style" not in "".join(parts), "a style sheet in an SVG would be the whole page's"
    for part, picture in zip(parts, pictures, strict=False):
        assert part.startswith("<svg ") and 'role="img"' in part.split(">")[0]
        named = ET.fromstring(part).find("{http://www.w3.org/2000/svg}desc").text
        assert named == picture.alt
        addresses = set(re.findall(r"https?://[^\"' <]+", part))
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "names, not links"


def test_saved_files_are_what_their_endings_say(folders, tmp_path):
    (picture,) = draw(folders["rome"], "tasks")
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert ET.fromstring((tmp_path / "a.svg").read_bytes()).tag.endswith("svg")


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "scroe"}, r"--metric scroe: no cell has it. Did you mean 'score'\? Known are score, script, valid"),
        ({"tasks": ["edithurt_sst"]}, r"--tasks edithurt_sst: not in this sweep. Did you mean 'edithurt_sst2'\?"),
        ({"kinds": ["task"]}, r"task: no such kind of figure. Did you mean 'tasks'\?"),
        ({"kinds": ["batch"]}, "nothing to draw; batch needs a row with edit_batch_size: all"),
    ],
)
def test_a_wrong_choice_names_the_nearest(folders, options, message):
    with pytest.raises(UserError, match=message):
        figures(load_sweep(folders["rome"]), **options)


def test_several_mistakes_are_told_at_once(folders):
    with pytest.raises(ConfigurationError, match="2 problems"):
        choose(load_sweep(folders["rome"]), ["nowhere"], "nothing")


def test_tasks_and_groups_by_name(folders):
    sweep = load_sweep(folders["seeds"])
    assert choose(sweep, ["edithurt_suite"]).tasks == tuple(SUITE) == choose(sweep).tasks
    assert choose(sweep, ["sst2", "edithurt_efficacy"]).tasks == ("edithurt_sst2", "edithurt_efficacy")
    assert "edithurt_efficacy" in choose(sweep, metric="valid").notices[0]
    with pytest.raises(ConfigurationError, match="edithurt_efficacy: it has no valid"):
        choose(sweep, ["edithurt_efficacy"], "valid")


def test_published_values_that_do_not_fit_their_counts(tmp_path):
    published = {"metric": "script", "n_edits": [0, 5], "tasks": {"edithurt_rte": [0.5]}}
    write_sweep(tmp_path / "out", {"published": published}, documents=4)
    with pytest.raises(ConfigurationError, match="published: edithurt_rte has 1 values for 2 n_edits"):
        draw(tmp_path / "out")


def test_facts_from_a_file_are_named_without_its_folder(tmp_path):
    write_sweep(tmp_path / "out", {"datasets": "/some/where/facts.json", "n_edits": [1]}, documents=4)
    (picture,) = draw(tmp_path / "out", "tasks")
    assert picture.name == "tasks-demo-rome-facts" and "where" not in words_of(picture) + picture.alt


def test_nothing_finished_yet(tmp_path):
    states = {("rome", n): "missing" for n in COUNTS}
    write_sweep(tmp_path / "out", documents=4, states=states)
    with pytest.raises(UserError, match="holds no finished cell of an edited model; run `lm-eval-edit sweep`"):
        draw(tmp_path / "out")


def test_without_matplotlib_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'lm-eval-edit\[plots\]'"):
        draw(folders["rome"])


# ------------------------------------------------------------------------------------------------------------- command


def plot(*args: object):
    return python("-m", "lm_eval_edit", "plot", *args, path=ROOT)


def test_the_command_draws_a_folder_and_tells_what_is_missing(folders, tmp_path):
    done = plot(folders["seeds"], "-o", tmp_path / "plots", "--kinds", "methods,tradeoff,batch", "--format", "svg")
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == ["methods-demo.svg", "tradeoff-demo.svg"]
    assert done.stdout.split() == [str(tmp_path / "plots" / f"{kind}-demo.svg") for kind in ("methods", "tradeoff")]
    assert "batch: nothing to draw; it needs a row with edit_batch_size: all" in done.stderr
    assert "demo/rome-demo-seed0/n00050: collapsed" in done.stderr


def test_the_commands_mistakes_are_one_message(folders, tmp_path):
    done = plot(tmp_path)
    assert done.returncode == 1 and f"{tmp_path} holds no sweep (no sweep.json)" in done.stderr
    done = plot(folders["rome"], "--format", "pgn", "--kinds", "norm")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "2 problems" in done.stderr
    assert "--kinds norm: not known. Did you mean 'norms'?" in done.stderr
    assert "--format pgn: not known. Did you mean 'png'?" in done.stderr
    assert not (folders["rome"] / "plots").exists()
    (tmp_path / "file").write_text("")
    done = plot(folders["rome"], "--kinds", "norms", "-o", tmp_path / "file" / "plots")
    assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
