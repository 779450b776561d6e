"""The benchmarks still run, and both sides of that of editing still compute the same. Their timings are no test."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu, gpu_runs, lifelong
from tests.conftest import ROOT

ON_CPU = ("--device", "cpu", "--tiny")


def test_both_sides_of_the_benchmark_agree():
    done = subprocess.run(
        [sys.executable, "benchmarks/editing.py", "--tiny", "--dtype", "float64", "--tolerance", "1e-9"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for family in ("gpt2", "llama"):
        for what in ("rome", "memit", "kn", "stats"):
            assert f"| {family} | {what} | plain |" in done.stdout
    assert "ledger of 5 ROME edits" in done.stdout and "continued, 4 layers" in done.stdout


def test_the_benchmark_of_long_runs_runs(tmp_path, capsys):
    assert lifelong.main(["--tiny", "--output", str(tmp_path / "figures.json")]) == 0
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["method"], row["batch_size"], row["how"]) for row in rows] == [
        ("rome", 1, "run"), ("rome", 1, "edit"),
        *(("memit_seq", size, how) for size in (1, 10) for how in ("run", "edit")),
    ]  # fmt: skip
    assert all(row["disk"] > 0 and min(row["ms"].values()) > 0 for row in rows)
    assert all(
        f"| {row['method']} | {row['batch_size']} | {row['how']} |" in capsys.readouterr().out for row in rows[:1]
    )


def test_the_benchmark_of_long_runs_names_what_it_misses():
    row = {
        "method": "rome", "batch_size": 1, "how": "run", "ratio_to_fixed": 1.1, "tensors": {10: 0, 1000: 900},
        "peak": {10: 0, 1000: 1000}, "own_state": 0, "opening_ms": {100: 1.0, 1000: 1.2},
    }  # fmt: skip
    assert not lifelong.missed(row, [10, 1000], lifelong.Wanted())
    grown = {
        "ratio_to_fixed": 1.3, "tensors": {10: 0, 1000: 2000}, "peak": {10: 0, 1000: 990 * 25 * 1024},
        "opening_ms": {100: 1.0, 1000: 9.0},
    }  # fmt: skip
    for name, value in grown.items():
        assert len(lifelong.missed(row | {name: value}, [10, 1000], lifelong.Wanted())) == 1
    assert len(lifelong.missed(row | grown, [10, 1000], lifelong.Wanted())) == 4


def test_the_gpu_benchmark_runs_whole_on_a_cpu(tmp_path):
    assert gpu.main([*ON_CPU, "--repeats", "1", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    records = found["records"]
    assert found["versions"]["torch"] == torch.__version__
    assert not [r for r in records if "left_out" in r or "failed" in r]
    edits = [r for r in records if r["what"] == "edit"]
    methods = {"rome", "r_rome", "memit", "emmet", "alphaedit", "kn", "mend", "ft", "lora", "rect", "random", "prune"}
    assert {r["method"].split()[0].strip(",") for r in edits} == methods
    assert {(r["model"], r["dtype"]) for r in edits} == {
        (model, dtype) for model in ("gpt2-xl", "llama-7b") for dtype in ("float32", "bfloat16", "float16")
    }
    assert all(r["seconds"] > 0 and r["relative_norm"] > 0 for r in edits)
    assert all((r["rounding_loss"] == 0) == (r["dtype"] == "float32") for r in edits)
    assert len([r for r in records if r["what"] == "restored" and r["ok"]]) == 6
    assert all(r["relative_error"] == 0 for r in records if r["what"] == "agreement")  # the CPU with itself
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"| {r['model']} | {r['dtype']} | {r['method']} |" in table for r in edits)
    assert "Not run" not in table and found["date"] in table


def test_the_gpu_benchmark_says_what_the_budget_left_out(tmp_path):
    one = ["--budget-s", "0", "--models", "gpt2-xl", "--dtypes", "bfloat16", "--output", str(tmp_path)]
    assert gpu.main([*ON_CPU, *one]) == 0
    records = json.loads((tmp_path / "gpu.json").read_text())["records"]
    out = [r for r in records if r["what"] in ("edit", "evaluation", "agreement")]
    assert len(out) == 25 and all(r["left_out"].startswith("time budget") for r in out)
    assert "Not run:" in (tmp_path / "gpu.md").read_text()


def test_a_measurement_that_fails_costs_itself_alone(tmp_path, monkeypatch, capsys):
    stock = gpu_runs.Bench._edit

    def broken(self, model, method):
        if method.editor == "kn":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")
        return stock(self, model, method)

    monkeypatch.setattr(gpu_runs.Bench, "_edit", broken)
    one = ["--models", "gpt2-xl", "--dtypes", "bfloat16", "--repeats", "1", "--output", str(tmp_path)]
    assert gpu.main([*ON_CPU, *one]) == 1
    records = json.loads((tmp_path / "gpu.json").read_text())["records"]
    (failed,) = [r for r in records if "failed" in r]
    assert failed["failed"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert len([r for r in records if "seconds" in r and r["what"] == "edit"]) == 11
    assert "- gpt2-xl bfloat16 edit kn: RuntimeError" in (tmp_path / "gpu.md").read_text()
    assert "in broken" in capsys.readouterr().err, "the traceback is not lost"


def test_what_was_measured_is_written_whatever_happens(tmp_path, monkeypatch):
    def no_bench(*args):
        raise ValueError("no such shape")

    monkeypatch.setattr(gpu, "Bench", no_bench)
    one = ["--models", "gpt2-xl", "--dtypes", "bfloat16", "--output", str(tmp_path)]
    assert gpu.main([*ON_CPU, *one]) == 1
    records = json.loads((tmp_path / "gpu.json").read_text())["records"]
    assert len([r for r in records if "relative_error" in r]) == 12
    assert records[-1] == {"what": "what was to come", "failed": "ValueError: no such shape"}


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (("--device", "cpu"), "add --tiny"),
        pytest.param(
            ("--device", "cuda"), "--device cpu --tiny runs",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)  # fmt: skip
def test_the_gpu_benchmark_refuses_a_device_it_cannot_use(options, remedy, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu.main(options)
    assert remedy in capsys.readouterr().err


SCRIPTS = sorted(
    script.relative_to(ROOT).as_posix()
    for folder in ("examples", "benchmarks")
    for script in (ROOT / folder).glob("*.py")
    if "__main__" in script.read_text(encoding="utf-8")
)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(script):
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.rpartition('/')[2]}")
