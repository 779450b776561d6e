"""The benchmarks still run, and both sides of that of editing still compute the same. Their timings are no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import editing, gpu, gpu_runs, lifelong, minimum
from lm_eval_edit.cost.work import Shape
from lm_eval_edit.editors._shared.rows import Row
from tests.conftest import ROOT
from tests.support.tiny import FACTS, save_tiny, tiny_llama, write_facts

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


METHODS = ("rome", "r_rome", "memit", "kn", "ft", "ft_m")


@pytest.fixture
def real(tmp_path):
    """Arguments for a tiny model in a folder, as if it were a real one."""
    facts = write_facts(tmp_path / "facts.jsonl", [replace(fact, separator=" ") for fact in FACTS])
    folder = save_tiny(tmp_path / "model", tiny_llama())
    return ["--model", str(folder), "--facts", str(facts), "--clock", "cpu"]


def figures(printed: str) -> dict[str, list[str]]:
    """{method: cells} of the table at the end."""
    lines = [line.strip("| ").split(" | ") for line in printed.rstrip().splitlines() if line.startswith("| ")]
    return {cells[0]: [cell.strip() for cell in cells[1:]] for cells in lines}


def test_a_real_model_is_measured_beside_its_minimum(real, capsys):
    assert editing.main(real) == 0
    found = figures(capsys.readouterr().out)
    assert set(METHODS) < set(found)
    for what in METHODS:
        count, ours, least, ratio, *theirs = found[what]
        assert 0 < int(count) <= len(FACTS) and float(least) <= float(ours) and float(ratio) > 1, what
        assert theirs[:3] == ["not run"] * 3


def test_a_real_model_is_measured_beside_easyedit(real, capsys):
    clone = os.environ.get("EASYEDIT_PATH")
    if not clone:
        pytest.skip("EASYEDIT_PATH names no clone of zjunlp/EasyEdit (docs/easyeditor.md says how to set one up)")
    assert editing.main([*real, "--easyedit", clone]) == 0
    for what, cells in figures(capsys.readouterr().out).items():
        assert what not in METHODS or (float(cells[4]) > 0 and float(cells[6]) < 1e-2), what


def test_what_a_real_model_does_not_know_is_told(real, capsys):
    for wrong, told in ((["--what", "memory"], "a real model knows rome"), (["--clock", "flops"], "in seconds")):
        with pytest.raises(SystemExit):
            editing.main([*real, *wrong])
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [["--device", "cuda"], ["--dtype", "float64"], ["--tolerance", "0.1"], ["--tiny"], ["--families", "gpt2"],
     ["--repeats", "3"]],
    ids=lambda wrong: wrong[0],
)  # fmt: skip
def test_options_of_random_models_are_refused_beside_a_real_one(wrong, real, capsys):
    with pytest.raises(SystemExit):
        editing.main([*real, *wrong])
    assert f"{wrong[0]}: of random models; a real one is run in float32 on the CPU" in capsys.readouterr().err


def test_facts_are_refused_without_a_real_model(capsys):
    with pytest.raises(SystemExit):
        editing.main(["--tiny", "--facts", "mine.jsonl"])
    assert "--facts mine.jsonl: of a real model" in capsys.readouterr().err


def test_easyedit_is_timed_by_the_chosen_clock_without_the_adapters_copies(monkeypatch):
    """The stand-in keeps its time as `benchmarks.easyedit.EasyEdit` does, and its adapter dawdles."""
    now = [0.0]

    class Other:
        def __init__(self, clone, method, options, clock):
            assert (clone, method) == ("clone", "ROME") and "context_templates" not in options
            self.editor = editing.Rome(editing.RomeOptions(layers=(1,), v_num_grad_steps=4))
            self.clock, self.seconds, self.took = clock, 0.0, iter((7.0, 3.0))

        def compute(self, context, facts):
            now[0] += 100
            started = self.clock()
            result = self.editor.compute(context, facts)
            now[0] += next(self.took)
            self.seconds += self.clock() - started
            return result

    monkeypatch.setattr(editing, "EasyEdit", Other)
    size = replace(editing.TINY, repeats=2)
    bench = editing.Bench("gpt2", size, torch.float64, "cpu", "clone", lambda: now[0])
    found = bench.rome()
    assert (found.other, found.ours, found.theirs, found.error) == ("EasyEdit", 0.0, 3.0, 0.0)


def test_the_least_work_counts_shared_beginnings_once_and_no_padding():
    shape = Shape(1000, 4, 8, 16, 50, 8, 100)
    rows = [Row([1, 2, 3, 4], 2, (4,)), Row([1, 2, 9, 4, 5], 3, (5,)), Row([3], 0)]
    once = minimum._target(shape, [rows], 2, [1])
    # Left of the subjects: 1, 1 2, 1 2 9; from them on 2 + 2 + 1 tokens, once below block 2 and once above; 3 are read.
    assert once == shape.blocks(3, 3) + shape.blocks(5, 3 + 4 + 4 + 5 + 1) + 3 * shape.head
    left = minimum._target(shape, [rows, rows], 2, [1, 1])
    assert left == 2 * once - shape.blocks(3, 3)
    assert minimum._target(shape, [rows], 2, [2]) == once + 2 * (shape.blocks(5, 17, 2) + 3 * shape.head)
