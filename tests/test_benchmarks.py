"""The benchmark of editing still runs, and both of its sides still compute the same. Its timings are no test."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


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
