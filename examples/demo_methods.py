"""Every method on the demo world: do its edits take, and what do twenty of them cost?

    python examples/demo_methods.py                    # writes docs/demo_methods.json and the table in README.md
    python examples/demo_methods.py --editors rome kn  # some methods only, printed

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

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval
from lm_eval.tasks import TaskManager

from lm_eval_edit import EditedHFLM, load_facts
from lm_eval_edit._startup import hooks as _hooks
from lm_eval_edit.edits.answers import edit_answers
from lm_eval_edit.edits.run import run_operations
from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.suite.catalogue import TASKS

ROOT = Path(__file__).resolve().parents[1]
METHODS = [
    "rome", "r_rome", "memit", "emmet", "alphaedit", "betaedit", "mend",
    "ft", "lora", "ultraedit", "rect", "prune", "sphere", "kn", "random",
]  # fmt: skip
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


def measure(editor: str, manager: TaskManager, unedited: dict[str, float], batches: bool) -> dict:
    """One row of the table."""
    started = time.perf_counter()
    size = N_EDITS if batches else 1
    lm = EditedHFLM(editor=editor, n_edits=N_EDITS, edit_batch_size=size, device="cpu")
    seconds = time.perf_counter() - started
    retained = lm.ledger.guards["retained"]["em"]
    after = scores(lm, manager)
    lm.restore()
    worst = min(TASKS, key=lambda task: after[task] - unedited[task])
    return {
        "editor": editor, "edit_batch_size": size, "retained": retained, "suite": after["suite"], "scores": after,
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
            f"| {row['editor']} | {row['single']:.2f} | {how} | {row['retained']:.2f} | {row['suite']:.2f} | {worst} |"
        )
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--editors", nargs="*", help="methods to run; all of them, and the README, without this")
    arguments = parser.parse_args()
    from lm_eval_edit.editors import find_editor

    assert len(load_facts("demo")) > N_EDITS + N_SINGLE
    manager = TaskManager(include_path=str(_hooks.tasks_dir()), include_defaults=False, metadata={"pretrained": "demo"})
    unedited = scores(EditedHFLM(device="cpu"), manager)
    rows = []
    for editor in arguments.editors or METHODS:
        try:
            rows.append(measure(editor, manager, unedited, find_editor(editor).edits_batches({})))
        except UserError as error:
            print(f"{editor}: {error}")
            continue
        print({name: value for name, value in rows[-1].items() if name != "scores"}, flush=True)
    print(table(rows, unedited))
    if not arguments.editors:
        content = {"unedited": unedited, "methods": rows}
        (ROOT / "docs" / "demo_methods.json").write_text(json.dumps(content, indent=1) + "\n")
        readme = ROOT / "README.md"
        before, rest = readme.read_text().split(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n{table(rows, unedited)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
