"""Runs of different engines or dtypes: `compare` and `check` say so, and what the two differ by without an edit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lm_eval_edit.cli import main
from lm_eval_edit.comparison.compare import Settings
from lm_eval_edit.comparison.other_engines import noise_floor
from lm_eval_edit.comparison.results import load_run
from tests.support.results_files import answers, samples, write_run

HF, VLLM = ({"engine": {"name": name, "version": None, "dtype": "float32"}} for name in ("transformers", "vllm"))
HALF = {"engine": {"name": "transformers", "version": None, "dtype": "float16"}}
EDITED = {"edit": {"editor": "rome", "n_edits": 2}}


@pytest.fixture(autouse=True)
def no_step_summary(monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def run(folder: Path, config: dict[str, Any], **wrong: int) -> Path:
    """A run with so many wrong answers of 200 in each of its tasks."""
    write_run(folder, {task: samples(answers(200, count)) for task, count in wrong.items()}, config=config)
    return folder


def cell(folder: Path, config: dict[str, Any], **wrong: int) -> Path:
    """The same as a cell of a sweep."""
    run(folder, config, **wrong)
    (folder / "cell.json").write_text("{}")
    return folder


def notices(baseline: Path, current: Path, out: Path) -> list[str]:
    """What `check` says beside its findings; it passes."""
    sides = ["--baseline", str(baseline), "--current", str(current)]
    assert main(["check", *sides, "--json", str(out), "--max-drop", "0.06"]) == 0
    return json.loads(out.read_text())["notices"]


@pytest.mark.parametrize(("config", "said"), [(VLLM, "vllm (float32)"), (HALF, "transformers (float16)")])
def test_check_says_that_the_engines_differ(tmp_path, capsys, config, said):
    base, current = run(tmp_path / "base", HF, t=20), run(tmp_path / "current", config, t=20)
    (notice,) = notices(base, current, tmp_path / "report.json")
    assert notice.startswith(f"different engines: transformers (float32) and {said}: a part of the differences")
    assert notice.endswith("; make the baseline with the same engine")
    assert notice in capsys.readouterr().out
    assert notices(base, base, tmp_path / "report.json") == []


def test_check_says_it_of_a_frozen_baseline_of_a_stock_run(tmp_path):
    stock = {"model": "vllm", "model_args": "pretrained=some/model,dtype=bfloat16"}
    half = {"model": "vllm", "model_args": "pretrained=some/model,dtype=float16"}
    base, current = run(tmp_path / "base", stock, t=20), run(tmp_path / "current", half, t=20)
    frozen = tmp_path / "baseline.json"
    assert main(["check", "--baseline", str(base), "--freeze", str(frozen)]) == 0
    (notice,) = notices(frozen, current, tmp_path / "report.json")
    assert "different engines: vllm (bfloat16) and vllm (float16)" in notice
    assert notices(frozen, base, tmp_path / "report.json") == []


def test_check_tells_what_the_engines_differ_by_without_an_edit(tmp_path):
    base, sweep = run(tmp_path / "base", HF, t=20, u=40), tmp_path / "sweep/tiny"
    cell(sweep / "unedited", VLLM, t=21, u=40)
    current = cell(sweep / "rome/n00002", VLLM | EDITED, t=21, u=40)
    (notice,) = notices(base, current, tmp_path / "report.json")
    assert notice.endswith(
        "The unedited model in both: t acc -0.005, 1 of 200 answers changed; u acc +0, 0 of 200 answers changed"
    )


@pytest.mark.parametrize("wanted", [None, ("t", "u")])
def test_the_noise_floor_is_of_the_tasks_that_all_have(tmp_path, wanted):
    base, sweep = load_run(run(tmp_path / "base", HF, t=20, u=40, base_alone=1)), tmp_path / "sweep/tiny"
    cell(sweep / "unedited", VLLM, t=22, other_alone=1)
    edited = load_run(cell(sweep / "rome/n00002", VLLM | EDITED, t=30, u=40))
    floor = noise_floor(base, edited, Settings(tasks=wanted, headlines={"u": "acc"}))
    assert floor is not None and [(row.task, row.difference.value) for row in floor.rows] == [
        ("t", pytest.approx(-0.01))
    ]


def test_no_task_in_common_is_no_noise_floor(tmp_path):
    base, sweep = load_run(run(tmp_path / "base", HF, t=20, u=40)), tmp_path / "sweep/tiny"
    cell(sweep / "unedited", VLLM, t=22)
    edited = load_run(cell(sweep / "rome/n00002", VLLM | EDITED, t=30, u=40))
    assert noise_floor(base, edited, Settings(tasks=("u",))) is None
    assert noise_floor(base, edited, Settings(tasks=("t",))) is not None
