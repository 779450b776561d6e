"""The picture of the first page is drawn from the figures that are kept, and says what the table says."""

from __future__ import annotations

import importlib
import re
from statistics import mean

import pytest

from tests.conftest import ROOT

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "examples")  # it takes functions from its neighbours
        yield importlib.import_module("real_figure")


@pytest.fixture(scope="module")
def found(script):
    return script.figures(script.read(script.KEPT))


def test_its_figures_are_those_of_the_table(script, found):
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    table = page.split("<!-- table: written by examples/sequential_methods.py -->")[1].split("<!--")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    columns = {"em": "em", "neighbourhood": "neighbourhood", "perplexity": "perplexity"}
    assert [line[0] for line in lines[2:]] == list(found)
    for line in lines[2:]:
        row = dict(zip(lines[0], line, strict=True))
        for panel, column in columns.items():
            digits = len(row[column].partition(".")[2])
            assert f"{found[line[0]][panel][0]:.{digits}f}" == row[column]


def test_intervals_hold_their_figure_and_are_what_they_are_called(script):
    scipy = pytest.importorskip("scipy.stats")
    hits = [1.0] * 91 + [0.0] * 9
    middle, low, high = script.share(hits)
    wilson = scipy.binomtest(91, 100).proportion_ci(method="wilson")
    assert (middle, low, high) == pytest.approx((0.91, wilson.low, wilson.high))
    thirds = [0.0, 1 / 3, 2 / 3, 1.0] * 25
    middle, low, high = script.share(thirds)
    assert middle == pytest.approx(mean(thirds)) and middle - low == pytest.approx(high - middle)
    assert script.share([1.0] * 100)[1] < 1


def test_the_picture_in_the_repository_is_the_one_it_draws(script, found):
    pinned = re.search(r"^matplotlib==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    if matplotlib.__version__ != pinned:
        pytest.skip(f"drawn with matplotlib {pinned}, this is {matplotlib.__version__}")
    drawn = script.picture(found)
    stored = (script.FOLDER / "real-hundred.svg").read_bytes()
    assert drawn.content("svg") == stored
    assert drawn.alt.count(";") == len(found) - 1 and "none: facts changed 0.01" in drawn.alt
