"""`examples/real_edit_quality.py`: what it measured is kept and not asked again, and lands between its marks."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "real_edit_quality.py"
PAGE = ROOT / "docs" / "edit_quality.md"


def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        return importlib.import_module(SCRIPT.stem)
    finally:
        sys.path.remove(str(SCRIPT.parent))


def test_the_docs_show_what_was_measured():
    module = script()
    kept = module.read(PAGE.with_name("edit_quality_demo.json"))
    begin, end = module.marks("demo")
    shown = PAGE.read_text().split(begin)[1].split(end)[0].strip()
    assert shown == module.table(kept), "run python examples/real_edit_quality.py --model demo --table"
    assert {key.split()[0] for key in kept} == set(module.ROWS)
    assert {found["about"]["n_edits"] for found in kept.values()} == {module.N}
    for key, found in kept.items():
        if key.endswith("edithurt_probing"):
            negation = {name: value for name, (value, _) in found["results"]["edithurt_negation"].items()}
            assert negation["score"] + negation["shortcut"] == pytest.approx(negation["answered"])
    assert all(mark in PAGE.read_text() for mark in module.marks("smollm2"))


def test_a_table_of_what_there_is():
    module = script()
    figures = {"score,none": 0.5, "score_stderr,none": 0.1, "alias": "x", "em,none": 1.0, "em_stderr,none": "N/A"}
    assert module.figures(figures) == {"score": [0.5, 0.1], "em": [1.0, None]}
    kept = {
        "rome edithurt_glue": {"results": {"edithurt_glue_sst": module.figures(figures)}},
        "none edithurt_wild": {"results": {"edithurt_wild": {"em": [0.25, float("nan")]}}},
    }
    assert module.table(kept).splitlines() == [
        "| task | metric | none | rome |",
        "|---|---|---:|---:|",
        "| glue_sst | score |  | 0.50 ± 0.10 |",
        "| wild | em | 0.25 |  |",
    ]


@pytest.mark.slow
def test_what_was_measured_is_not_asked_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\n".join(script().marks("demo")) + "\nafter\n")

    def run(*more):
        command = [
            sys.executable, SCRIPT, "--model", "demo", "--n", "2", "--rows", "rome", "--page", page,
            "--ledgers", tmp_path / "ledgers", *more,
        ]  # fmt: skip
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)

    first = run("--tasks", "edithurt_wild", "--metadata", "items=50")
    assert first.returncode == 0, first.stderr[-2000:]
    assert "rome: edithurt_wild done" in first.stdout and "| wild | contains |" in page.read_text()
    again = run("--tasks", "edithurt_wild", "edithurt_negation", "--metadata", "items=50")
    assert again.returncode == 0, again.stderr[-2000:]
    assert "edithurt_wild done" not in again.stdout and "rome: edithurt_negation done" in again.stdout
    kept = json.loads((tmp_path / "edit_quality_demo.json").read_text())
    assert set(kept) == {"rome edithurt_wild", "rome edithurt_negation"}
    assert "editing (rome)" not in again.stderr or "2/2" in again.stderr  # replayed from the ledger
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    unknown = run("--tasks", "edithurt_widl")
    assert unknown.returncode == 1 and "edithurt_widl" in unknown.stderr
