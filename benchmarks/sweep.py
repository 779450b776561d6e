"""A curve as one sweep against the same points as separate runs of the harness's command, in one run.

    python benchmarks/sweep.py                      # ROME on the demo, {0, 5, 10, 20, 50}, the suite
    python benchmarks/sweep.py --limit 20 --n_edits 0 2 4

Both ways run as console commands in processes of their own, one after the other, start-up included. Processor time is
what counts on a shared machine; wall-clock time is printed beside it. The figures of both ways are compared, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def timed(command: list[str]) -> tuple[float, float]:
    """(processor seconds, wall seconds) of a command and its children."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - started


def scores(folder: Path) -> dict[str, dict]:
    """The results of the only results file below a folder."""
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())["results"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n_edits", nargs="+", type=int, default=[0, 5, 10, 20, 50])
    parser.add_argument("--limit", type=int, help="documents per task")
    arguments = parser.parse_args()
    limit = ["--limit", str(arguments.limit)] if arguments.limit else []
    scripts = Path(sys.executable).parent
    ours, stock = str(scripts / "lm-eval-edit"), str(scripts / "lm_eval")  # installed beside this interpreter
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        counts = list(map(str, arguments.n_edits))
        sweep = timed(
            [ours, "sweep", "--pretrained", "demo", "--editors", "rome", "--n_edits", *counts, "--device", "cpu",
             *limit, "-o", str(out / "sweep")]
        )  # fmt: skip
        runs = []
        for n in arguments.n_edits:
            editor = f"editor=rome,n_edits={n}" if n else "editor=none"
            runs.append(timed(
                [stock, "run", "--model", "edited_hf", "--model_args", f"pretrained=demo,{editor}", "--tasks",
                 "edithurt_suite", "--device", "cpu", "--batch_size", "32", *limit, "--log_samples", "--output_path",
                 str(out / f"run{n}")]
            ))  # fmt: skip
            name = f"rome-demo-seed0/n{n:05d}" if n else "unedited"
            if scores(out / "sweep" / "demo" / name) != scores(out / f"run{n}"):
                print(f"n_edits={n}: the sweep and the run disagree", file=sys.stderr)
                return 1
        together = tuple(map(sum, zip(*runs, strict=True)))
    print(f"separate runs: {together[0]:.1f} s of processor, {together[1]:.1f} s in all")
    print(f"one sweep:     {sweep[0]:.1f} s of processor, {sweep[1]:.1f} s in all")
    print(
        f"ratio:         {sweep[0] / together[0]:.2f} of the processor time, {sweep[1] / together[1]:.2f} of the wall"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
