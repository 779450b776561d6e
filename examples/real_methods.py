"""Every method on a real model: do its edits of CounterFact facts take, do they generalize, what else do they change?

    python examples/real_methods.py --facts counterfact.jsonl --corpus corpus.txt    # docs/real_model.md
    python examples/real_methods.py --facts ... --corpus ... --editors rome ft       # these rows only
    python examples/real_methods.py --facts ... --editors kn --n 5                   # the first five facts will do
    python examples/real_methods.py --table                                          # the table from what there is

SmolLM2-135M-Instruct (`pretrained=smollm2`) with every method's defaults. Methods that edit one fact at a time, and
fine-tuning, edit each fact alone, in the unedited model; those that solve for many facts edit all in one batch. Second
moments are from the first tokens of the corpus, a text file. A run that was stopped goes on where it was: what has been
measured with the same facts, corpus and hyper-parameters is in docs/real_model.json and is not measured again.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from demo_real import asked, shared_templates
from kept import keep, read, replace_between
from tqdm.auto import tqdm

from lm_eval_edit import EditSchedule, Fact, edit_model, load_facts
from lm_eval_edit._support.files import hash_json
from lm_eval_edit._support.versions import versions
from lm_eval_edit.editors.base import Editor, find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.edits.source import describe_source, load_source
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.collect import collect_second_moments
from lm_eval_edit.moments.corpus import load_corpus
from lm_eval_edit.moments.second_moments import SecondMoments

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "real_model.md"
BEGIN, END = "<!-- table: written by examples/real_methods.py -->", "<!-- end of the table -->"
N = 20
TOKENS = 20_000  # of the corpus: 13 for each of the keys' 1536 dimensions

#: Row -> (method, its options where they are not the defaults, whether all facts are one batch).
ROWS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "none": ("none", {}, False),
    "rome": ("rome", {}, False),
    "r_rome": ("r_rome", {}, False),
    "memit": ("memit", {}, True),
    "emmet": ("emmet", {}, True),
    "alphaedit": ("alphaedit", {}, True),
    "ft": ("ft", {}, False),
    "lora": ("lora", {}, False),
    "kn": ("kn", {}, False),
    "rect": ("rect", {"over": "rome"}, False),
    "prune": ("prune", {"over": "memit"}, True),
    "random": ("random", {"like": "rome"}, False),
}
FIGURES = ("em", "prob_success", "paraphrase", "neighbourhood")


class Bench:
    """The model, the facts, and what has been measured.

    Args:
        facts: A file of CounterFact records.
        corpus: A text file for second moments; None where no method needs them.
        kept: The file that holds what was measured.
    """

    n = N  # facts

    def __init__(self, facts: Path, corpus: Path | None, kept: Path):
        self.model, self.tokenizer = load_source("smollm2", dtype="float32", device="cpu")
        self.model.eval()
        everything = load_facts(facts)
        self.facts = [fact for [fact] in EditSchedule(self.n, 1, seed=0).operations(everything)]
        self.corpus, self.kept = corpus, kept
        self.about = {
            "model": describe_source(self.model),
            "facts": {"sha256": everything.sha256, "ids": [fact.id for fact in self.facts]},
        }

    def row(self, name: str, n: int = N) -> None:
        """Measure one row as far as it has not been measured, over its first n facts if each is edited alone."""
        method, options, at_once = ROWS[name]
        found, editor = None, None
        if method != "none":
            found, problems = resolve(find_editor(method), self.model.config, options)
            assert not problems, problems
            editor = found.editor
        moments = self.moments(editor) if editor else None
        settings = self.settings(method, editor, N if at_once else 1)
        rows = read(self.kept)
        identity = hash_json(settings)
        if rows.get(name, {}).get("identity") != identity:
            rows[name] = {"identity": identity, "settings": settings, "versions": versions(), "measured": []}
        groups = [self.facts] if at_once else [[fact] for fact in self.facts[:n]]
        templates = None
        done = len(rows[name]["measured"])
        for group in tqdm(groups[done:], desc=name, unit="op", initial=done, total=len(groups)):
            measured, templates = self._measure(method, options, group, moments, templates)
            rows[name]["measured"].append(measured)
            keep(self.kept, {name: rows[name]})

    def settings(self, method: str, editor: Editor | None, edit_batch_size: int) -> dict[str, Any]:
        """What a row's figures depend on."""
        needed = editor is not None and editor.needs_second_moments()
        return {
            **self.about,
            "editor": method,
            "options": editor.describe() if editor else {},
            "edit_batch_size": edit_batch_size,
            "second_moments": [load_corpus(str(self.corpus)).sha256, TOKENS] if needed else None,
        }

    def _measure(self, method: str, options: dict, group: list[Fact], moments, templates) -> tuple[dict, Any]:
        """One operation: its processor time, the size of its change, what the model says of each of its facts."""
        if method == "none":
            return {"facts": [asked(self.model, self.tokenizer, fact) for fact in group]}, None
        started = time.process_time()
        ledger = edit_model(
            self.model, self.tokenizer, group, editor=method, edit_batch_size=len(group), options=options,
            context_templates=templates, second_moments=moments, progress=len(group) > 1,
        )  # fmt: skip
        seconds = time.process_time() - started
        changes = ledger.weights.report().values()
        details = ledger.operations[0].record["details"]
        measured = {
            "seconds": seconds,
            "delta_norm": sum(change["delta_norm"] ** 2 for change in changes) ** 0.5,
            "weight_norm": sum(change["weight_norm"] ** 2 for change in changes) ** 0.5,
            "details": {name: details[name] for name in ("closed", "from_model") if name in details},
            "facts": [asked(self.model, self.tokenizer, fact) for fact in group],
        }
        ledger.restore()
        return measured, shared_templates(ledger)

    def moments(self, editor: Editor) -> SecondMoments | None:
        """Second moments of the layers that a method needs them of; None where it needs none."""
        if not editor.needs_second_moments():
            return None
        if self.corpus is None:
            raise SystemExit(f"{editor.name} needs second moments: give --corpus FILE")
        layers = sorted({*editor.needs_second_moments()})
        assert not Architecture.discover(self.model).check_layers(layers)
        return collect_second_moments(self.model, self.tokenizer, layers, load_corpus(str(self.corpus)), TOKENS)


def table(rows: dict[str, Any]) -> str:
    """The rows as a markdown table; one that is not over all facts says over how many it is."""
    head = "| method | edited | em | prob_success | paraphrase | neighbourhood | ‖Δ‖/‖W‖ | s/edit |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|"]
    for name in ROWS:
        measured = rows.get(name, {}).get("measured", [])
        facts = [fact for operation in measured for fact in operation["facts"]]
        if not facts:
            continue
        method, options, at_once = ROWS[name]
        label = method + "".join(f", {value}" for value in options.values())
        how = "" if method == "none" else f"batch of {N}" if at_once else "one alone"
        cells = [label, how if len(facts) == N else f"{how}, {len(facts)} facts"]
        cells += [f"{mean(fact[figure] for fact in facts if fact[figure] is not None):.2f}" for figure in FIGURES]
        if method != "none":
            cells.append(f"{mean(o['delta_norm'] / o['weight_norm'] for o in measured):.3f}")
            cells.append(f"{sum(o['seconds'] for o in measured) / len(facts):.1f}")
        lines.append(f"| {' | '.join(cells + [''] * (8 - len(cells)))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=Path, help="a file of CounterFact records")
    parser.add_argument("--corpus", type=Path, help="a text file, for the methods that need second moments")
    parser.add_argument("--editors", nargs="*", choices=ROWS, default=list(ROWS), help="rows to measure (default: all)")
    parser.add_argument(
        "--n", type=int, default=N, help="facts of a row whose facts are edited alone (default: all 20)"
    )
    parser.add_argument("--kept", type=Path, default=DOCS.with_suffix(".json"), help="what was measured is kept here")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table from what there is")
    arguments = parser.parse_args()
    logging.getLogger("lm_eval_edit").setLevel(logging.ERROR)  # what it says of each edit the table says of all
    if not arguments.table:
        if arguments.facts is None:
            parser.error("--facts FILE is needed: CounterFact's records are not ours to distribute")
        bench = Bench(arguments.facts, arguments.corpus, arguments.kept)
        for name in arguments.editors:
            bench.row(name, arguments.n)
            print(table(read(arguments.kept)), flush=True)
    replace_between(DOCS, BEGIN, END, table(read(arguments.kept)))


if __name__ == "__main__":
    main()
