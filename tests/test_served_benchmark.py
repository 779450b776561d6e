"""The benchmark of served sweeps: what it tells of two sweeps' cells, and (`make test-vllm`) that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import served
from tests.conftest import ROOT
from tests.support.real_vllm import ENVIRONMENT, MARKS


def cell_of(folder, name, said, **record):
    """A cell's folder as a sweep leaves it, of one task of two documents."""
    (folder / name).mkdir(parents=True)
    (folder / name / "cell.json").write_text(json.dumps(record))
    lines = [json.dumps({"doc_id": n, "resps": resps}) for n, resps in enumerate(said)]
    (folder / name / "samples_edithurt_boolq_2026-11-26T00-00-00.jsonl").write_text("\n".join(lines))


def test_the_benchmark_of_served_sweeps_tells_noise_from_effect(tmp_path):
    local, there = tmp_path / "local", tmp_path / "served"
    for root, off, text in ((local, 0.0, " Yes"), (there, 1e-6, " No")):
        for name, effect in (("model/unedited", 0.0), ("model/rome/n00001", -2.0)):
            said = [[[[-1.0 + effect + off, True]]], [[" Yes" if name.endswith("unedited") else text]]]
            engine = {"name": "vllm", "served": "adapter"} if name.endswith("1") else {"name": "vllm"}
            cell_of(root, name, said, seconds={"evaluate": 1.5 + off}, engine=engine)
    base, edited = sorted(served.compared(local, there), key=lambda record: record["effect"])
    assert base["cell"] == "model/unedited" and base["effect"] == 0 and base["same_texts"] == base["texts"] == 1
    assert edited["served"] == "adapter" and edited["effect"] == 2 and edited["same_texts"] == 0
    assert edited["apart"] == pytest.approx(1e-6)
    about = {"device": "a device", "date": "today", "versions": {"torch": "2"}}
    whole = {"model": "one", "dtype": "float32", "seconds": 5.0, "seconds_in_process": 9.0, "cells": [base, edited]}
    text = served.report(about, [whole, {"model": "other", "failed": "out of memory"}])
    assert "| one | float32 | 2 | 9 | 5 | 1.5 | 1.5 | 1.0e-06 | 2.0e+00 to 2.0e+00 | 1 of 2 |" in text
    assert "- other: out of memory" in text


def test_every_token_of_a_random_model_can_be_written():
    tokenizer = served.tokenizer_of(served.TINY)
    assert len(tokenizer) == served.TINY.vocab_size
    assert all(tokenizer.decode([token]) for token in range(len(tokenizer) - 3, len(tokenizer)))


@MARKS[0]
@MARKS[1]
def test_a_served_sweep_is_measured_beside_the_sweep_of_one_process(tmp_path):
    command = [
        sys.executable,
        "benchmarks/served.py",
        "--device",
        "cpu",
        "--tiny",
        "--limit",
        "1",
        "--output",
        str(tmp_path),
    ]
    command += ["--engine_args", "enforce_eager=True", "gpu_memory_utilization=0.1"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (model,) = json.loads((tmp_path / "served.json").read_text())["models"]
    found = model["cells"]
    assert [cell["served"] for cell in found if cell["effect"]] == ["adapter"] * 8
    assert all(cell["apart"] < 1e-3 and cell["same_texts"] == cell["texts"] > 0 for cell in found)


def test_what_it_cannot_run_on_is_told_before_a_model_is_made(monkeypatch, capsys):
    monkeypatch.setattr(served.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        served.main(["--device", "cpu", "--tiny"])
    assert "vLLM is not installed" in capsys.readouterr().err
