"""Pictures of a sweep: read in grey, words beside each other, the same bytes again; mistakes; the command."""

from __future__ import annotations

import itertools
import math
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures need the extra plots")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from lm_eval_edit.cli import main
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.plots import figures
from lm_eval_edit.plots.choice import choose
from lm_eval_edit.plots.style import MARKERS, look, ramp, share_axis, spread
from lm_eval_edit.sweep.reading import load_sweep
from tests.conftest import ROOT
from tests.support.plotted import draw, lines_of, words_of
from tests.support.processes import python
from tests.support.results_files import sample, samples
from tests.support.sweep_folders import SUITE, write_cells, write_sweep

# --------------------------------------------------------------------------------------------------------------- looks


@pytest.mark.parametrize("name", ["rome", "seeds", "at_once", "operations", "many"])
def test_words_do_not_cover_each_other_and_are_not_cut(sweeps, name, monkeypatch):
    shown, paint = [], Text.draw

    def record(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            shown.append((text.get_text(), text.get_window_extent(renderer)))
        return paint(text, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", record)  # what is really drawn: ticks outside the axes are not
    for picture in draw(sweeps[name]):
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


def test_lines_are_told_apart_without_colour(sweeps):
    for picture in draw(sweeps["rome"], "tasks") + draw(sweeps["many"], "methods"):
        lines = [line for name, line in lines_of(picture).items() if not name.startswith("published")]
        plain = [(line.get_marker(), str(line._dash_pattern), line.get_linewidth()) for line in lines]
        assert len(lines) >= 9 and len(set(plain)) == len(plain)
    assert len({(look(i).marker, look(i).dashes) for i in range(44)}) == 44 and len(set(MARKERS)) == 11
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


def test_the_axis_of_edits_is_true_to_scale(sweeps):
    (picture,) = draw(sweeps["rome"], "tasks")
    assert picture.figure.axes[0].get_xscale() == "linear"
    (picture,) = draw(sweeps["many"], "methods")
    axes = picture.figure.axes[0]
    assert axes.get_xscale() == "symlog" and "log scale" in axes.get_xlabel()
    assert axes.get_xlim()[0] < 0 and axes.get_xlim()[1] > 50


def test_a_metric_that_is_no_share_has_an_axis_of_its_own():
    figure = Figure()
    share, perplexity, exploded, correlation, logarithms = figure.subplots(5)
    share_axis(share, [0.2, 0.9], "score")
    share_axis(perplexity, [12.0, 30.0], "perplexity")
    share_axis(exploded, [12.0, 3e6, math.inf], "perplexity")
    share_axis(correlation, [-0.4, 0.6], "mcc")
    share_axis(logarithms, [-30.0, -12.0], "loglikelihood")
    low, high = correlation.get_ylim()
    assert low < -0.4 and high > 0.6 and logarithms.get_ylim() == pytest.approx((-31.5, 0))
    assert share.get_ylim()[1] == pytest.approx(1.02) and perplexity.get_ylim() == pytest.approx((0, 31.5))
    assert exploded.get_yscale() == "log" and "log scale" in exploded.get_ylabel()


# --------------------------------------------------------------------------------------------------------------- files


def test_the_same_numbers_give_the_same_bytes(sweeps):
    kinds = ("methods", "tradeoff", "norms")
    for first, again in zip(draw(sweeps["seeds"], *kinds), draw(sweeps["seeds"], *kinds), strict=True):
        for suffix in ("png", "svg"):
            assert first.content(suffix) == again.content(suffix) == first.content(suffix), first.name
        assert not re.search(rb"20\d\d-\d\d-\d\dT", first.content("svg"))


def test_a_users_own_matplotlib_settings_change_nothing(sweeps):
    import matplotlib

    (before,) = draw(sweeps["rome"], "tasks")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "figure.dpi": 300, "savefig.dpi": 40}):
        (after,) = draw(sweeps["rome"], "tasks")
        assert after.content("png") == before.content("png")


def test_pictures_stand_together_in_a_page(sweeps):
    pictures = draw(sweeps["seeds"])
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


def test_saved_files_are_what_their_endings_say(sweeps, tmp_path):
    (picture,) = draw(sweeps["rome"], "tasks")
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
def test_a_wrong_choice_names_the_nearest(sweeps, options, message):
    with pytest.raises(UserError, match=message):
        figures(load_sweep(sweeps["rome"]), **options)


def test_several_mistakes_are_told_at_once(sweeps):
    with pytest.raises(ConfigurationError, match="2 problems"):
        choose(load_sweep(sweeps["rome"]), ["nowhere"], "nothing")


def test_tasks_and_groups_by_name(sweeps):
    sweep = load_sweep(sweeps["seeds"])
    (group,), (default,) = choose(sweep, ["edithurt_suite"]), choose(sweep)
    assert group.tasks == tuple(SUITE) == default.tasks and default.metric == "score"
    (named,), (valid,) = choose(sweep, ["sst2", "edithurt_efficacy"]), choose(sweep, metric="valid")
    assert named.tasks == ("edithurt_sst2", "edithurt_efficacy") and "edithurt_efficacy" in valid.notices[0]
    with pytest.raises(ConfigurationError, match="edithurt_efficacy: it has no valid"):
        choose(sweep, ["edithurt_efficacy"], "valid")


def test_tasks_of_several_metrics_have_pictures_of_their_own(tmp_path):
    """Stock tasks, our suite's and those about the edits: every ability is drawn, in its own unit."""
    acc = {"hellaswag": samples([1, 1, 0, 1], "acc"), "arc": samples([1, 0, 0, 1], "acc")}
    cells = {n: {"edithurt_sst2": samples([1, 1, 1, 0], "score"), **acc} for n in (0, 5)}
    cells[5] |= {"edithurt_efficacy": samples([1, 1, 1, 1], "score")}
    pictures = draw(write_cells(tmp_path / "out", cells), "tasks", "norms", "tradeoff")
    assert [picture.name for picture in pictures if picture.kind == "tasks"] == [
        "tasks-demo-rome-score", "tasks-demo-rome-acc"
    ]  # fmt: skip
    assert [list(lines_of(picture)) for picture in pictures[:2]] == [["sst2"], ["hellaswag", "arc", "mean"]]
    del cells[0]["edithurt_sst2"], cells[5]["edithurt_sst2"]
    folder = write_cells(tmp_path / "stock", cells)
    (picture,) = draw(folder, "tasks")
    assert list(lines_of(picture)) == ["hellaswag", "arc", "mean"] and picture.name == "tasks-demo-rome"
    with pytest.raises(ConfigurationError, match="score: only tasks about the edits have it; --tasks edithurt_eff"):
        draw(folder, metric="score")
    (picture,) = draw(folder, "tasks", tasks=["efficacy"])
    assert list(lines_of(picture)) == ["efficacy"]
    about = write_cells(tmp_path / "about", {n: {"edithurt_efficacy": samples([1, 0], "score")} for n in (0, 5)})
    assert list(lines_of(draw(about, "tasks")[0])) == ["efficacy"], "nothing else is there"


def test_a_tasks_prefix_stays_where_the_name_would_be_anothers(tmp_path):
    cells = {n: {name: samples([1, 0], "acc") for name in ("edithurt_rte", "rte", "edithurt_nq")} for n in (0, 5)}
    (picture,) = draw(write_cells(tmp_path / "out", cells), "tasks")
    assert list(lines_of(picture)) == ["edithurt_rte", "rte", "nq", "mean"]


def test_a_headline_is_the_first_metric_of_the_tasks_yaml(tmp_path):
    lines = [sample(i, {"valid": 1, "acc": i % 2}) for i in range(4)]
    folder = write_cells(tmp_path / "out", {0: {"t": lines}, 5: {"t": lines}})
    cell = load_sweep(folder).rows[0].cells[0]
    assert cell.headline("t") == "valid"
    cell.results["configs"]["t"]["metric_list"].reverse()
    assert cell.headline("t") == "acc" and cell.headline("nowhere") is None


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
    states = {("rome", n): "missing" for n in (5, 10, 15, 20)}
    write_sweep(tmp_path / "out", documents=4, states=states)
    with pytest.raises(UserError, match="holds no finished cell of an edited model; run `lm-eval-edit sweep`"):
        draw(tmp_path / "out")


def test_without_matplotlib_the_extra_is_named(sweeps, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'lm-eval-edit\[plots\]'"):
        draw(sweeps["rome"])


# ------------------------------------------------------------------------------------------------------------- command


def plot(*args: object):
    return python("-m", "lm_eval_edit", "plot", *args, path=ROOT)


def test_the_command_draws_a_folder_and_tells_what_is_missing(sweeps, tmp_path):
    done = plot(sweeps["seeds"], "-o", tmp_path / "plots", "--kinds", "methods,tradeoff,batch", "--format", "svg")
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == ["methods-demo.svg", "tradeoff-demo.svg"]
    assert done.stdout.split() == [str(tmp_path / "plots" / f"{kind}-demo.svg") for kind in ("methods", "tradeoff")]
    assert "batch: nothing to draw; it needs a row with edit_batch_size: all" in done.stderr
    assert "demo/rome-demo-seed0/n00050: collapsed" in done.stderr


def test_the_commands_mistakes_are_one_message(sweeps, tmp_path, capsys):
    def told(*arguments: object) -> str:
        assert main(["plot", *map(str, arguments)]) == 1
        return capsys.readouterr().err

    assert f"{tmp_path} holds no sweep (no sweep.json)" in told(tmp_path)
    message = told(sweeps["rome"], "--format", "pgn", "--kinds", "norm")
    assert "2 problems" in message and "--kinds norm: not known. Did you mean 'norms'?" in message
    assert "--format pgn: not known. Did you mean 'png'?" in message
    assert "--format is empty" in told(sweeps["rome"], "--format", ",")
    message = told(sweeps["rome"], "--kinds", ",", "--tasks", "")
    assert "--kinds is empty; give some of methods, tasks" in message and "--tasks is empty" in message
    (tmp_path / "sweep.json").write_text('{"format": 1}')
    message = told(tmp_path)
    assert "sweep.json is incomplete: it has no design, about_schedule, about_model, rows" in message
    assert not (sweeps["rome"] / "plots").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in told(sweeps["rome"], "--kinds", "norms", "-o", tmp_path / "file" / "plots")
