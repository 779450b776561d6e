"""The commands of the tutorial and the how-to pages, typed into a shell as they stand; and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.console_scripts import SCRIPTS, results_of
from tests.support.pages import commands, tables, type_in

pytestmark = pytest.mark.slow


def run_page(page: str, folder: Path) -> str:
    """Everything that a page's commands print, in one folder."""
    typed = commands(page)
    assert typed
    return "".join(type_in(command, folder, SCRIPTS) for command in typed)


def number(text: str) -> float:
    return float(text.strip().replace("−", "-"))


def test_the_tutorial_costs_what_it_says(tmp_path):
    run_page("docs/tutorial.md", tmp_path)
    told = [rows[0] for rows in tables("docs/tutorial.md")]
    assert len(told) == 2
    for row, run in zip(told, ("edited", "twenty"), strict=True):
        report = json.loads(type_in(f"lm-eval-edit compare unedited {run} --format json", tmp_path, SCRIPTS))
        (found,) = [
            one for one in report["comparisons"][0]["groups"]
            if one["task"] == row["task"] and one["metric"] == row["metric"]
        ]  # fmt: skip
        assert str(found["n"]) == row["n"]
        assert row["verdict"].startswith(found["verdict"])
        low, high = map(number, row["95% interval"].strip("[]").split(","))
        said = [number(row[name]) for name in ("base", "edited", "difference")] + [low, high]
        have = [found["base"], found["edited"], found["difference"], *found["interval"]]
        assert have == pytest.approx(said, abs=0.02)  # another machine rounds otherwise, and 20 edits pile that up


def test_facts_of_ones_own(tmp_path):
    printed = run_page("docs/how-to/facts.md", tmp_path)
    assert "2 usable, 0 skipped" in printed and "no problems" in printed
    assert "edithurt_locality" in printed and "edithurt_suite" in printed


def test_a_curve(tmp_path):
    pytest.importorskip("matplotlib")
    run_page("docs/how-to/curve.md", tmp_path)
    assert (tmp_path / "curve" / "report.html").is_file()
    assert len(list((tmp_path / "curve" / "plots").glob("*.svg"))) > 3


def test_a_gate(tmp_path):
    run_page("docs/how-to/gate.md", tmp_path)  # the last command is the gate itself: it passes
    assert (tmp_path / "baseline.json").is_file()


def test_an_export(tmp_path):
    run_page("docs/how-to/vllm.md", tmp_path)
    card = (tmp_path / "edited" / "README.md").read_text(encoding="utf-8")
    assert "lm_eval --model vllm" in card and "dtype=float32" in card


def test_the_results_page_names_every_key_that_is_written(tmp_path):
    page = "docs/how-to/results.md"
    run_page(page, tmp_path)
    named = {
        name.strip("` ")
        for rows in tables(page) for row in rows for cell in row.values() for name in cell.split(",")
        if name.strip().startswith("`")
    }  # fmt: skip
    results = results_of(tmp_path / "out")
    assert set(results["config"]["edit"]) <= named
    assert {"results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better"} <= named
    every = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    for figures in results["config"]["edit"]["parameters"].values():
        assert all(f"`{name}`" in every for name in figures)
    for block in ("guards", "dataset"):
        missing = [name for name in results["config"]["edit"][block] if f"`{name}`" not in every]
        assert not missing
    unedited = results_of(tmp_path / "base")["config"]["edit"]
    assert set(unedited) == {"editor", "n_edits", "model", "weights_fingerprint", "versions"}
