"""The published figures and the written texts by the real commands: one process and two, a sweep, a comparison."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.support.console_scripts import lm_eval, results_of, samples_of

pytest.importorskip("nltk")
pytestmark = pytest.mark.slow
GENERATION = "edithurt_counterfact_generation"
TASKS = f"{GENERATION},edithurt_counterfact,edithurt_zsre"
RUN = ("--model", "edited_hf", "--model_args", "editor=rome,n_edits=3", "--tasks", TASKS, "--log_samples")


def figures(folder):
    """(task, metric) -> figure."""
    found = results_of(folder)["results"]
    return {
        (task, key): value
        for task, values in found.items()
        for key, value in values.items()
        if isinstance(value, float) and "_stderr_stderr" not in key
    }


def texts(folder):
    return {s["doc"]["fact_id"]: [each[2] for each in s["filtered_resps"]] for s in samples_of(folder, GENERATION)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """After three ROME edits of the demo model: in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    lm_eval(*RUN, "--output_path", "one", cwd=folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), "-m", "lm_eval"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *RUN, "--output_path", "two"],
        cwd=folder, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_write_what_one_writes(runs):
    assert texts(runs / "one") == texts(runs / "two") and len(texts(runs / "one")) == 3
    assert figures(runs / "two") == pytest.approx(figures(runs / "one"), abs=1e-6)


def test_every_figure_has_a_standard_error(runs):
    values = results_of(runs / "one")["results"]
    for task in TASKS.split(","):
        names = [key.removesuffix(",none") for key in values[task] if key.endswith(",none") and "_stderr" not in key]
        assert names and all(f"{name}_stderr,none" in values[task] for name in names)


def test_a_sweep_and_a_comparison(runs):
    """The unedited model's cell against the edited one's, fact by fact; an entropy in bits joins no mean of shares."""
    lm_eval(
        "sweep", "--pretrained", "demo", "--editors", "rome", "--n_edits", "0", "3", "--tasks", *TASKS.split(","),
        "-o", "sweep", cwd=runs, program="lm-eval-edit",
    )  # fmt: skip
    before, after = sorted((runs / "sweep" / "demo" / "rome-demo-seed0").glob("n0*"))
    assert figures(after) == pytest.approx(figures(runs / "one"), abs=1e-6)
    compared = json.loads(
        lm_eval("compare", before, after, "--format", "json", cwd=runs, program="lm-eval-edit").stdout
    )
    (found,) = compared["comparisons"]
    rows = {(row["task"], row["metric"]): row for row in found["rows"]}
    for name in ("score_script", "es_script", "em_script", "es_acc"):
        row = rows["edithurt_counterfact", name]
        assert row["clusters"] == row["n"] > 0, "one document a fact"
    assert rows["edithurt_counterfact", "em_script"]["difference"] > 0.5
    assert rows[GENERATION, "fluency"]["clusters"] == 3 == rows["edithurt_zsre", "es_token_acc"]["clusters"]
    mean = next(row for row in found["groups"] if row["task"] == "mean of edit quality")
    assert 0 <= mean["base"] <= 1 and 0 <= mean["edited"] <= 1
