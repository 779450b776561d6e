"""What `compare` costs: 200,000 paired documents in less than 10 seconds (of the processor, so that other programs do
not count) and 1 GiB.

    python benchmarks/compare.py [DOCUMENTS]

Writes two runs of one task with a 0/1 and a continuous metric as lm-eval would, compares them in a process of its own,
and exits with 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS, BYTES = 10.0, 1 << 30
DATE = "2026-01-02T03-04-05.678901"


def write_run(folder: Path, n: int, seed: int) -> None:
    """A results file and its samples."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    totals = [0.0, 0.0]
    with (folder / f"samples_big_{DATE}.jsonl").open("w") as file:
        for i in range(n):
            right, score = float(rng.random() < 0.6), rng.random()
            totals[0] += right
            totals[1] += score
            prompt = f"Passage {i // 3}: " + "words " * 40 + f"Question {i}?"
            digest = hashlib.sha256(prompt.encode()).hexdigest()
            sample = {
                "doc_id": i, "doc": {"passage": f"Passage {i // 3}: " + "words " * 40, "question": f"Question {i}?"},
                "target": "yes", "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": []}}},
                "resps": [["yes" if right else "no"]], "filtered_resps": ["yes" if right else "no"], "filter": "none",
                "metrics": ["acc", "score"], "doc_hash": digest, "prompt_hash": digest, "target_hash": digest,
                "acc": right, "score": score,
            }  # fmt: skip
            file.write(json.dumps(sample) + "\n")
    figures = {"acc,none": totals[0] / n, "score,none": totals[1] / n}
    listed = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "score")]
    results = {
        "results": {"big": figures}, "configs": {"big": {"task": "big", "metric_list": listed}},
        "versions": {"big": 1},
        "n-samples": {"big": {"original": n, "effective": n}},
        "higher_is_better": {"big": {"acc": True, "score": True}},
    }  # fmt: skip
    (folder / f"results_{DATE}.json").write_text(json.dumps(results))


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description="What `lm-eval-edit compare` costs, within limits.")
    parser.add_argument("documents", nargs="?", type=int, default=200_000, help="documents a run (200000)")
    n = parser.parse_args().documents
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder / "a", n, 0)
        write_run(folder / "b", n, 1)
        command = [sys.executable, "-m", "lm_eval_edit", "compare", folder / "a", folder / "b", "--format", "markdown"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{n:,} pairs: {busy:.1f} s of the processor (at most {SECONDS:g}) in {seconds:.1f} s, ", end="")
    print(f"{peak / 2**20:.0f} MiB (at most {BYTES / 2**20:g})")
    return int(busy > SECONDS or peak > BYTES)


if __name__ == "__main__":
    sys.exit(main())
