"""The same edits by several protocols: every method on the demo world, right after each edit and after all of them.

    python examples/demo_edit_quality.py                    # writes docs/edit_quality.json and docs/edit_quality.md
    python examples/demo_edit_quality.py --editors rome kn  # some methods only, printed

Twenty facts, edited one after another by every method.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval
from kept import replace_between
from lm_eval.tasks import TaskManager

from lm_eval_edit import EditedHFLM
from lm_eval_edit._startup import hooks as _hooks
from lm_eval_edit.errors import UserError
from lm_eval_edit.settings import AFTER_ALL, AFTER_EACH

ROOT = Path(__file__).resolve().parents[1]
METHODS = ["none", "rome", "r_rome", "memit", "emmet", "alphaedit", "mend", "ft", "lora", "kn", "random"]
N_EDITS = 20
COLUMNS = [
    *((task, metric) for task in ("efficacy", "generalization") for metric in ("em", "token_acc", "prob_success")),
    *(("locality", metric) for metric in ("correct", "unchanged", "prob_success")),
]
BEGIN, END = "<!-- table: written by examples/demo_edit_quality.py -->", "<!-- end of the table -->"


def measure(lm: EditedHFLM, editor: str, when: str) -> dict[str, list[float]]:
    """Every column's figure and standard error."""
    metadata = {"pretrained": "demo", "editor": editor, "n_edits": N_EDITS, "edit_when": when}
    manager = TaskManager(include_path=str(_hooks.tasks_dir()), include_defaults=False, metadata=metadata)
    results = lm_eval.simple_evaluate(
        model=lm, model_args=metadata, tasks=["edithurt_editing"], task_manager=manager, log_samples=False
    )["results"]
    return {
        f"{task}.{metric}": [results[f"edithurt_{task}"][f"{name},none"] for name in (metric, f"{metric}_stderr")]
        for task, metric in COLUMNS
    }


def table(rows: list[dict]) -> str:
    """The rows as a markdown table."""
    short = {"efficacy": "eff.", "generalization": "gen.", "locality": "loc."}
    heads = [f"{short[task]} {metric}" for task, metric in COLUMNS]
    lines = [f"| method | asked | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    for row in rows:
        values = [f"{value:.2f} ± {error:.2f}" for value, error in row["figures"].values()]
        lines.append(f"| {row['editor']} | {row['when']} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--editors", nargs="*", help="methods to run; all of them, and docs/, without this")
    arguments = parser.parse_args()
    rows = []
    for editor in arguments.editors or METHODS:
        try:
            lm = EditedHFLM(editor=editor, n_edits=N_EDITS, device="cpu")
        except UserError as error:
            raise SystemExit(f"{editor}: {error}") from None  # a table without a method would look complete
        for when in [AFTER_EACH, AFTER_ALL] if editor != "none" else [AFTER_ALL]:
            rows.append({"editor": editor, "when": when, "figures": measure(lm, editor, when)})
            print(editor, when, {name: value for name, (value, _) in rows[-1]["figures"].items()}, flush=True)
    print(table(rows))
    if not arguments.editors:
        (ROOT / "docs" / "edit_quality.json").write_text(
            json.dumps({"n_edits": N_EDITS, "rows": rows}, indent=1) + "\n"
        )
        page = ROOT / "docs" / "edit_quality.md"
        replace_between(page, BEGIN, END, table(rows))


if __name__ == "__main__":
    main()
