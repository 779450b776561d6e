"""Every method on the demo world: do its edits take, and what do twenty of them cost?

    python examples/demo_methods.py                 # docs/demo_methods.json and the table in docs/method_table.md
    python examples/demo_methods.py --rows rome kn  # measures these again, and keeps what is known of the others

"single edits": share of facts, each edited alone on the restored model, whose new object is then generated.
"20 edits": one batch where the method edits batches, else one after another; how many of the twenty are answered at
the end, the mean score of the eight tasks, and the task that lost most.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval
from kept import replace_between
from lm_eval.tasks import TaskManager

from lm_eval_edit import EditedHFLM, load_facts
from lm_eval_edit._startup import hooks as _hooks
from lm_eval_edit._support.files import write_json
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.edits.answers import edit_answers
from lm_eval_edit.edits.run import run_operations
from lm_eval_edit.tasklib.suite.catalogue import TASKS

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "demo_methods.json"
#: Row -> (method, its options where they are not the demo's). The anchor is what `norm_anchor=auto` measures on 50
#: facts; single edits could not measure it.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "rome": ("rome", {}),
    "r_rome": ("r_rome", {}),
    "memit": ("memit", {}),
    "memit, own_targets": ("memit", {"own_targets": True}),
    "memit, norm_anchor": ("memit", {"norm_anchor": 53.55}),
    "memit_seq": ("memit_seq", {}),
    "encore": ("encore", {}),
    "emmet": ("emmet", {}),
    "alphaedit": ("alphaedit", {}),
    "betaedit": ("betaedit", {}),
    "mend": ("mend", {}),
    "ft": ("ft", {}),
    "ft, append_eos, shuffle": ("ft", {"append_eos": True, "shuffle": True}),
    "lora": ("lora", {}),
    "ultraedit": ("ultraedit", {}),
    "rect": ("rect", {}),
    "prune": ("prune", {}),
    "sphere": ("sphere", {}),
    "kn": ("kn", {}),
    "kn, variant=paper": ("kn", {"variant": "paper"}),
    "random": ("random", {}),
}  # fmt: skip
N_EDITS, N_SINGLE = 20, 50
BEGIN, END = "<!-- methods table: written by examples/demo_methods.py -->", "<!-- end of the methods table -->"


def scores(lm: EditedHFLM, manager: TaskManager) -> dict[str, float]:
    """`score` of every task, and of the suite, as the model stands."""
    results = lm_eval.simple_evaluate(
        model=lm, model_args={"pretrained": "demo"}, tasks=["edithurt_suite"], task_manager=manager, bootstrap_iters=0,
        log_samples=False,
    )["results"]  # fmt: skip
    return {name.removeprefix("edithurt_"): values["score,none"] for name, values in results.items()}


def single_edits(lm: EditedHFLM, n: int) -> float:
    """Share of n facts, none of them in the schedule, that are answered after being edited alone."""
    plan = lm.plan
    scheduled = {fact.id for operation in plan.operations for fact in operation}
    facts = [fact for fact in plan.facts if fact.id not in scheduled][:: max(1, len(plan.facts) // n)][:n]
    taken = 0
    for fact in facts:
        ledger = run_operations(
            lm.model, lm.tokenizer, plan.hyperparameters.editor, [[fact]], edit_batch_size=1,
            second_moments=plan.second_moments, progress=False,
        )  # fmt: skip
        taken += edit_answers(lm.model, lm.tokenizer, [fact])[0].exact
        ledger.restore()
    return taken / len(facts)


def measure(label: str, manager: TaskManager, unedited: dict[str, float]) -> dict[str, Any]:
    """One row of the table."""
    editor, options = ROWS[label]
    size = N_EDITS if find_editor(editor).edits_batches(options) else 1
    started = time.process_time()
    lm = EditedHFLM(editor=editor, n_edits=N_EDITS, edit_batch_size=size, device="cpu", **options)
    seconds = time.process_time() - started
    retained = lm.ledger.guards["retained"]["em"]
    after = scores(lm, manager)
    lm.restore()
    worst = min(TASKS, key=lambda task: after[task] - unedited[task])
    return {
        "label": label, "edit_batch_size": size, "retained": retained, "suite": after["suite"], "scores": after,
        "worst": worst, "single": single_edits(lm, N_SINGLE), "seconds": seconds,
    }  # fmt: skip


def table(rows: list[dict], unedited: dict[str, float]) -> str:
    """The rows as a markdown table."""
    head = "| method | single edits | 20 edits | answered | suite | worst task |\n|---|---:|---|---:|---:|---|"
    lines = [f"| none | | | | {unedited['suite']:.2f} | |"]
    for row in rows:
        how = "one batch" if row["edit_batch_size"] > 1 else "one by one"
        worst = f"{row['worst']} {unedited[row['worst']]:.2f} → {row['scores'][row['worst']]:.2f}"
        lines.append(
            f"| {row['label']} | {row['single']:.2f} | {how} | {row['retained']:.2f} | {row['suite']:.2f} | {worst} |"
        )
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="*", choices=ROWS, help="rows to measure again (default: those not yet there)")
    arguments = parser.parse_args()
    assert len(load_facts("demo")) > N_EDITS + N_SINGLE
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {"methods": []}
    rows = {row["label"]: row for row in kept["methods"]}
    manager = TaskManager(include_path=str(_hooks.tasks_dir()), include_defaults=False, metadata={"pretrained": "demo"})
    unedited = kept.get("unedited") or scores(EditedHFLM(device="cpu"), manager)
    wanted = [label for label in ROWS if label not in rows] if arguments.rows is None else arguments.rows
    for label in wanted:
        rows[label] = measure(label, manager, unedited)
        print({name: value for name, value in rows[label].items() if name != "scores"}, flush=True)
        kept = {"unedited": unedited, "methods": [rows[label] for label in ROWS if label in rows]}
        write_json(KEPT, kept)
    replace_between(ROOT / "docs" / "method_table.md", BEGIN, END, table(kept["methods"], unedited))


if __name__ == "__main__":
    main()
