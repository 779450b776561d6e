"""`examples/ci` on the demo world: a gate that passes, one that must block, and what `compare` says of such runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lm_eval_edit
from lm_eval_edit.comparison.compare import REGRESSED, UNHARMED, compare_runs
from lm_eval_edit.comparison.results import load_run
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples" / "ci"
DEMO = Path(lm_eval_edit.__file__).parent / "demo" / "checkpoint" / "model.safetensors"

needs_demo = pytest.mark.skipif(not DEMO.exists(), reason="the demo checkpoint is not in this checkout")


def shell(folder: Path, *command: object) -> subprocess.CompletedProcess:
    env = os.environ | {
        "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "GITHUB_STEP_SUMMARY": str(folder / "step.md"),
    }  # fmt: skip
    return subprocess.run(
        [str(word) for word in command], cwd=folder, env=env, capture_output=True, text=True, timeout=1800
    )


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    """Both gates as the workflow runs them: exit status and output of each, in one folder."""
    folder = tmp_path_factory.mktemp("gates")
    done = {
        name: shell(folder, EXAMPLES / "gate.sh", f"editor=rome,n_edits={n}", f"out/{name}")
        for name, n in (("one", 1), ("fifty", 50))
    }
    return folder, done


@pytest.mark.slow
@needs_demo
def test_the_gate_that_passes(gates):
    folder, done = gates
    assert done["one"].returncode == 0, done["one"].stdout[-3000:] + done["one"].stderr[-3000:]
    assert (folder / "out/one/summary.md").read_text().startswith("## lm-eval-edit check: pass")
    frozen = (folder / "out/baseline.json").read_text()
    assert json.loads(frozen)["format"] == "lm-eval-edit baseline" and len(frozen) < 200_000


@pytest.mark.slow
@needs_demo
def test_the_gate_that_must_block(gates):
    folder, done = gates
    assert done["fifty"].returncode == 1, done["fifty"].stdout[-3000:] + done["fifty"].stderr[-3000:]
    report = json.loads((folder / "out/fifty/check.json").read_text())
    assert report["verdict"] == "regression" and report["current"]["n_edits"] == 50
    steps = (folder / "step.md").read_text()
    assert "check: pass" in steps and "check: regression" in steps
    assert "<failure" in (folder / "out/fifty/junit.xml").read_text()


@pytest.mark.slow
@needs_demo
def test_compare_on_the_demo_world(gates):
    """Twenty edits hurt, and the hurt tasks are named; one edit is not called a regression; no edit is identical."""
    folder, _ = gates
    model = ("--model", "edited_hf", "--tasks", "edithurt_suite", "--log_samples")
    for name, arguments, batch_size in (("twenty", "editor=rome,n_edits=20", 32), ("none", "editor=none", 7)):
        done = shell(
            folder, sys.executable, "-m", "lm_eval_edit", "run", *model, "--model_args", arguments, "--batch_size",
            batch_size, "--output_path", name,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    base = load_run(folder / "out/one-unedited")
    twenty, one, none = (load_run(folder / name) for name in ("twenty", "out/one", "none"))

    hurt = compare_runs(base, twenty)
    for row in hurt.rows:
        if row.headline and row.difference.value < -0.15:
            assert row.verdict == REGRESSED, row
    assert sum(row.headline and row.verdict == REGRESSED for row in hurt.rows) >= 3
    assert hurt.groups[0].task == "edithurt_suite" and hurt.groups[0].verdict == REGRESSED
    assert all(row.verdict != REGRESSED for row in compare_runs(base, one).rows)
    for row in (*compare_runs(base, none).rows, *compare_runs(base, none).groups):
        assert row.verdict == UNHARMED and row.detectable > 0


def test_the_workflow_runs_what_is_there():
    workflow = yaml.safe_load((EXAMPLES / "model-gate.yml").read_text())
    commands = "\n".join(step.get("run", "") for step in workflow["jobs"]["gate"]["steps"])
    assert "examples/ci/gate.sh editor=rome,n_edits=1 out/one" in commands
    assert "examples/ci/gate.sh editor=rome,n_edits=50 out/fifty" in commands
    assert os.access(EXAMPLES / "gate.sh", os.X_OK)


def test_the_gates_limits_can_be_read():
    from lm_eval_edit.comparison.check import read_gate

    gate = read_gate(yaml.safe_load((EXAMPLES / "gate.yaml").read_text()), "gate.yaml")
    assert gate.max_drop == 0.1 and gate.floors == {"efficacy.em": 0.9}
