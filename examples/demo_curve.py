"""The demo's curve as a table: what `lm-eval-edit sweep examples/demo_curve.yaml -o DIR` found.

python examples/demo_curve.py DIR    # writes the table into docs/index.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kept import replace_between

from lm_eval_edit.sweep.reading import Sweep, load_sweep
from lm_eval_edit.tasklib.suite.catalogue import GROUP, TASKS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "index.md"
BEGIN, END = "<!-- demo table: written by `make figures` -->", "<!-- end of the demo table -->"


def table(sweep: Sweep) -> str:
    """`score` of the suite and of every task, a line for each checkpoint, as a markdown table."""
    names = {"suite": GROUP} | {name: f"edithurt_{name}" for name in TASKS}
    lines = ["| n_edits | " + " | ".join(names) + " |", "|---:|" + "---:|" * len(names)]
    for _, cell in sweep.cells():
        scores = [f"{cell.value(task, 'score').value:.2f}" for task in names.values()]
        lines.append(f"| {cell.n_edits} | " + " | ".join(scores) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="the sweep's folder")
    replace_between(PAGE, BEGIN, END, table(load_sweep(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
