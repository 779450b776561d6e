"""Twenty edits by ROME and by memit_seq: what they wrote, what is known of it, and what they cost; task by task.

    python examples/real_edit_quality.py --model demo                               # the demo's table in the docs
    python examples/real_edit_quality.py --facts counterfact.jsonl --corpus corpus.txt           # the real model's
    python examples/real_edit_quality.py --facts ... --corpus ... --tasks edithurt_probing edithurt_glue \\
        --metadata items=50,data_dir=data                                           # some tasks, with what they need
    python examples/real_edit_quality.py --table                                    # the table from what there is

The model is SmolLM2-135M-Instruct (`pretrained=smollm2`), or the one that `--model` names; the facts are edited one
after another, each by its own operation, and everything is asked when all of them are in. Second moments are from the
first tokens of the corpus, a text file. A run that was stopped goes on where it was: edits are in ledgers, in the
folder that `--ledgers` names, and what a task gave for the same weights, facts and metadata is not asked again.
"""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lm_eval
from kept import keep, read, replace_between
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from lm_eval_edit import EditedHFLM, load_facts
from lm_eval_edit._startup import hooks
from lm_eval_edit._support.files import hash_json
from lm_eval_edit._support.versions import versions
from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.glue.catalogue import GROUPED

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "edit_quality.md"
REAL, DEMO = "smollm2", "demo"
ROWS = ("none", "rome", "memit_seq")
NEED_MOMENTS = ("memit_seq",)
N, TOKENS = 20, 20_000
TASKS = ("edithurt_editing", "edithurt_probing")

#: Task -> the metrics that the table has of it; `score` of any other.
SHOWN = {
    "edithurt_efficacy": ("em", "prob_success"),
    "edithurt_generalization": ("em", "prob_success"),
    "edithurt_locality": ("correct", "unchanged", "prob_success"),
    "edithurt_negation": ("score", "answered", "shortcut", "answered_old", "shortcut_old", "prob_negated"),
    "edithurt_factcheck": ("score", "true_new", "false_old", "consistent", "ranked"),
    "edithurt_wild": ("contains", "em", "old", "valid"),
    "edithurt_wild_chat": ("contains", "em", "old", "valid"),
    "edithurt_glue": ("score", "valid", "f1_new"),
}
SHOWN |= {f"edithurt_glue_{task}": SHOWN["edithurt_glue"] for task in GROUPED}


def marks(model: str) -> tuple[str, str]:
    """What stands around the table of a model in the docs."""
    kind = DEMO if model == DEMO else "real"
    return f"<!-- {kind} table: written by examples/real_edit_quality.py -->", f"<!-- end of the {kind} table -->"


class Bench:
    """A model edited by one method after another, and what the tasks gave.

    Args:
        arguments: The command line's.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.given = arguments
        self.metadata = simple_parse_args_string(arguments.metadata)
        self.facts = load_facts(arguments.facts or DEMO).sha256

    def options(self, row: str) -> dict[str, Any]:
        """The model's arguments for a row."""
        given = self.given
        options: dict[str, Any] = {"pretrained": given.model, "editor": row, "n_edits": given.n}
        if given.facts is not None:
            options["edit_dataset"] = str(given.facts)
        if row != "none":
            options["edit_ledger"] = str(given.ledgers / f"{Path(given.model).name}-{row}-{given.n}")
        if row in NEED_MOMENTS and given.corpus is not None:
            options |= {"edit_corpus": str(given.corpus), "edit_corpus_tokens": TOKENS}
        return options

    def row(self, row: str) -> None:
        """Ask one method's edits all tasks that have not been asked."""
        options = self.options(row)
        lm = EditedHFLM(**options, device="cpu", batch_size=self.given.batch_size)
        about = {
            "row": row,
            "n_edits": self.given.n,
            "weights": lm.weights_fingerprint,
            "facts": self.facts,
            # Where the data lie is this machine's business.
            "metadata": {name: value for name, value in self.metadata.items() if name != "data_dir"},
        }
        for task in self.given.tasks:
            identity = hash_json(about | {"task": task})
            if read(self.given.kept).get(f"{row} {task}", {}).get("identity") == identity:
                continue
            found = {
                "identity": identity,
                "about": about,
                "versions": versions(),
                "results": self.ask(lm, task, options),
            }
            keep(self.given.kept, {f"{row} {task}": found})
            print(f"{row}: {task} done", flush=True)

    def ask(self, lm: EditedHFLM, task: str, options: dict[str, Any]) -> dict[str, dict[str, list[float | None]]]:
        """Task -> metric -> its figure and standard error."""
        metadata = options | self.metadata
        with hooks.only_our_tasks() if task.startswith("edithurt_") else nullcontext():
            manager = TaskManager(metadata=metadata)
        found = lm_eval.simple_evaluate(
            model=lm, model_args=metadata, tasks=[task], task_manager=manager, log_samples=False
        )
        return {name: figures(values) for name, values in (found["results"] | found.get("groups", {})).items()}


def figures(values: dict[str, Any]) -> dict[str, list[float | None]]:
    """Metric -> its figure and standard error, None where there is none."""
    out = {}
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if comma and isinstance(value, int | float) and not metric.endswith("_stderr"):
            error = values.get(f"{metric}_stderr,{filter_name}")
            out[metric] = [value, error if isinstance(error, int | float) else None]
    return out


def table(kept: dict[str, Any]) -> str:
    """A line for each metric, a column for each row of edits."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    rows = [row for row in ROWS if any(key.split()[0] == row for key in kept)]
    for key, found in kept.items():
        row = key.split()[0]
        for task, metrics in found["results"].items():
            for metric in SHOWN.get(task, ("score",)):
                if metric in metrics:
                    cells.setdefault((task, metric), {})[row] = shown(*metrics[metric])
    lines = [f"| task | metric | {' | '.join(rows)} |", "|---|---|" + "---:|" * len(rows)]
    for (task, metric), values in cells.items():
        lines.append(f"| {task.removeprefix('edithurt_')} | {metric} | {' | '.join(values.get(r, '') for r in rows)} |")
    return "\n".join(lines)


def shown(value: float, error: float | None) -> str:
    """A figure for the table."""
    return f"{value:.2f}" if error is None or error != error else f"{value:.2f} ± {error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=REAL, help="smollm2, demo, or what pretrained= takes")
    parser.add_argument("--facts", type=Path, help="a file of CounterFact records; the demo's own for --model demo")
    parser.add_argument("--corpus", type=Path, help="a text file, for second moments")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS, help="methods (default: all)")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="tasks and groups, each asked by itself")
    parser.add_argument("--metadata", default="", help="for the tasks: items=50,data_dir=...")
    parser.add_argument("--n", type=int, default=N, help="number of edits")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--ledgers", type=Path, default=Path("edit_quality_ledgers"), help="a folder for the edits")
    parser.add_argument("--kept", type=Path, help="what was measured is kept here (default: beside the page)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page with the table's marks")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table from what there is")
    arguments = parser.parse_args()
    kind = DEMO if arguments.model == DEMO else "real"
    arguments.kept = arguments.kept or arguments.page.with_name(f"edit_quality_{kind}.json")
    if not arguments.table:
        if kind != DEMO and (arguments.facts is None or arguments.corpus is None):
            parser.error("--facts FILE and --corpus FILE are needed: neither is ours to distribute")
        bench = Bench(arguments)
        for row in arguments.rows:
            try:
                bench.row(row)
            except UserError as error:
                raise SystemExit(f"{row}: {error}") from None
    replace_between(arguments.page, *marks(arguments.model), table(read(arguments.kept)))
    print(table(read(arguments.kept)))


if __name__ == "__main__":
    main()
