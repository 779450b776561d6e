"""The paper's finding on the demo world: score of the eight tasks against the number of ROME edits.

    python examples/demo_curve.py            # writes docs/demo_curve.{json,png,svg} and the table in README.md

The demo model is loaded and edited once; each checkpoint is a prefix of the longest schedule, so no edit is repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval
import matplotlib.pyplot as plt
from lm_eval.tasks import TaskManager

from lm_eval_edit import EditedHFLM, _hooks
from lm_eval_edit.tasklib.catalogue import TASKS

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = (0, 1, 5, 10, 20, 50)
BEGIN, END = "<!-- demo table: written by examples/demo_curve.py -->", "<!-- end of the demo table -->"
# Okabe and Ito's colours and one marker each, so that the lines differ without colour too.
STYLES = zip(
    ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"), "osD^v<>P", strict=True
)


def evaluate(lm: EditedHFLM, manager: TaskManager) -> dict[str, float]:
    """`score` of every task, and of the suite, as the model stands."""
    results = lm_eval.simple_evaluate(
        model=lm,
        model_args={"pretrained": "demo"},
        tasks=["edithurt_suite"],
        task_manager=manager,
        batch_size=32,
        bootstrap_iters=0,
        log_samples=False,
    )["results"]
    return {name.removeprefix("edithurt_"): values["score,none"] for name, values in results.items()}


def measure(checkpoints: tuple[int, ...], seed: int) -> list[dict]:
    """One row for each checkpoint: n_edits and the scores."""
    lm = EditedHFLM(editor="rome", n_edits=max(checkpoints), edit_seed=seed, device="cpu", batch_size=32)
    manager = TaskManager(include_path=str(_hooks.tasks_dir()), include_defaults=False, metadata={"pretrained": "demo"})
    rows = []
    for n in checkpoints:
        lm.apply(n)
        started = time.perf_counter()
        scores = evaluate(lm, manager)
        rows.append({"n_edits": n, **scores, "seconds": time.perf_counter() - started})
        print(f"n_edits={n}: suite {scores['suite']:.3f}")
    return rows


def table(rows: list[dict]) -> str:
    """The rows as a markdown table."""
    names = ["suite", *TASKS]
    head = "| n_edits | " + " | ".join(names) + " |\n|---:|" + "---:|" * len(names)
    lines = [f"| {row['n_edits']} | " + " | ".join(f"{row[name]:.2f}" for name in names) + " |" for row in rows]
    return "\n".join([head, *lines])


def draw(rows: list[dict], path: Path) -> None:
    """Eight lines and their mean, as PNG and SVG."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    x = [row["n_edits"] for row in rows]
    for task, (colour, marker) in zip(TASKS, STYLES, strict=True):
        axes.plot(x, [row[task] for row in rows], color=colour, marker=marker, markersize=4, linewidth=1, label=task)
    axes.plot(x, [row["suite"] for row in rows], color="black", linewidth=3, alpha=0.4, label="mean")
    axes.set(xlabel="facts edited one after another (ROME)", ylabel="score", ylim=(-0.02, 1.02), xticks=x)
    axes.set_title("Demo world: what editing knowledge does to everything else")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=150, metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="edit_seed: which facts, in which order")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "demo_curve", help="path without its ending")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose demo table is replaced")
    arguments = parser.parse_args()
    rows = measure(CHECKPOINTS, arguments.seed)
    arguments.output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, arguments.output)
    text = arguments.readme.read_text()
    before, rest = text.split(BEGIN)
    arguments.readme.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
