"""A hundred CounterFact facts in a real model, ten at a time, one batch after another: what each method keeps of them.

    python examples/sequential_methods.py --facts counterfact.jsonl --corpus corpus.txt    # docs/methods.md
    python examples/sequential_methods.py --facts ... --corpus ... --rows memit_seq locft  # these rows only
    python examples/sequential_methods.py --table                                          # from what there is

SmolLM2-135M-Instruct (`pretrained=smollm2`); facts, second moments and questions are those of `real_methods.py`, by
the rules said there, but for the context templates, of which three are used, and for neighbourhood prompts, three a
fact. Everything is asked when all facts are in. Perplexity is of the end of the corpus, a text that
the second moments have not seen. A run that was stopped goes on where it was: the edits are in ledgers, in the folder
that `--ledgers` names, and what was measured with the same settings is in docs/sequential_methods.json.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from demo_real import asked
from kept import keep, read, replace_between
from real_methods import DOCS, FIGURES, Bench
from tqdm.auto import tqdm

from lm_eval_edit import edit_model
from lm_eval_edit._support.files import hash_json, sha256
from lm_eval_edit._support.versions import versions
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.editors.templates import sample_templates
from lm_eval_edit.moments.corpus import load_corpus

PAGE = DOCS.with_name("methods.md")
KEPT = DOCS.with_name("sequential_methods.json")
BEGIN, END = "<!-- table: written by examples/sequential_methods.py -->", "<!-- end of that table -->"
N, BATCH = 100, 10
TEMPLATES = 2  # beside the bare prompt, of the five that are sampled: half of the work
PROBES = 3  # of a fact's ten neighbourhood prompts
TEXT_TOKENS, WINDOW = 8192, 512  # of the text whose perplexity is taken

#: Row -> (what the table calls it, method, its options where they are not the defaults, facts of one operation).
ROWS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "none": ("none", "none", {}, BATCH),
    "memit": ("memit", "memit", {}, BATCH),
    "memit_seq": ("memit_seq", "memit_seq", {}, BATCH),
    "encore": ("encore", "encore", {}, BATCH),
    "alphaedit": ("alphaedit", "alphaedit", {}, BATCH),
    "betaedit": ("betaedit", "betaedit", {}, BATCH),
    "blue": ("memit, own_targets (BLUE)", "memit", {"own_targets": True}, BATCH),
    "nas": ("memit, norm_anchor=auto (NAS)", "memit", {"norm_anchor": "auto"}, BATCH),
    "sphere": ("sphere over alphaedit", "sphere", {"over": "alphaedit"}, BATCH),
    "ultraedit": ("ultraedit", "ultraedit", {}, BATCH),
    "locft": ("ft, append_eos, shuffle (LocFT)", "ft", {"append_eos": True, "shuffle": True, "minibatch": 10}, N),
}


class SequentialBench(Bench):
    """The model, a hundred facts, a text, and what has been measured.

    Args:
        facts: A file of CounterFact records.
        corpus: A text file: its beginning for second moments, its end for perplexity.
        ledgers: A folder for the rows' ledgers.
        kept: The file that holds what was measured.
    """

    n = N

    def __init__(self, facts: Path, corpus: Path, ledgers: Path, kept: Path):
        super().__init__(facts, corpus, kept)
        self.facts = [replace(fact, locality=fact.locality[:PROBES]) for fact in self.facts]
        self.ledgers = ledgers
        texts = [text for text in load_corpus(str(corpus)).texts if text.strip()]
        ids = self.tokenizer("\n".join(texts[-400:]))["input_ids"][-TEXT_TOKENS:]
        self.windows = torch.tensor(ids).view(-1, WINDOW)
        self.about |= {"probes": PROBES, "templates": TEMPLATES}
        self.about["text"] = {"sha256": sha256(self.tokenizer.decode(ids).encode()), "tokens": len(ids)}

    def row(self, name: str) -> None:
        """Measure one row if it has not been measured."""
        _, method, options, size = ROWS[name]
        resolved, problems = (
            (None, []) if method == "none" else resolve(find_editor(method), self.model.config, options)
        )
        assert not problems, problems
        editor = resolved.editor if resolved else None
        settings = self.settings(method, editor, size)
        identity = hash_json(settings)
        if read(self.kept).get(name, {}).get("identity") == identity:
            return
        measured: dict[str, Any] = {}
        ledger = None
        if editor is not None:
            started = time.process_time()
            plan = editor.template_plan()
            sampled = plan and sample_templates(self.model, self.tokenizer, plan, seed=0)
            ledger = edit_model(
                self.model, self.tokenizer, self.facts, editor=method, edit_batch_size=size, options=options,
                context_templates=[sampled[0], sampled[1][:TEMPLATES]] if sampled else None,
                second_moments=self.moments(editor), ledger=self.ledgers / f"{name}-{identity[:12]}",
            )  # fmt: skip
            measured["seconds"] = time.process_time() - started  # of this process: less where a run was resumed
            # Without the facts: they are not ours to distribute.
            measured["operations"] = [
                {name: value for name, value in operation.record.items() if name != "facts"}
                for operation in ledger.operations
            ]
            measured["weights"] = ledger.weights.report()
        measured["perplexity"] = self.perplexity()
        measured["facts"] = [asked(self.model, self.tokenizer, fact) for fact in tqdm(self.facts, desc=name)]
        if ledger is not None:
            ledger.restore()
        keep(self.kept, {name: {"identity": identity, "settings": settings, "versions": versions()} | measured})

    @torch.no_grad()
    def perplexity(self) -> float:
        """exp of the mean loss of the text's tokens, each window by itself."""
        losses = []
        for window in self.windows.split(4):
            logits = self.model(window).logits[:, :-1].flatten(0, 1)
            losses.append(torch.nn.functional.cross_entropy(logits, window[:, 1:].flatten()).item())
        return math.exp(mean(losses))


def table(rows: dict[str, Any]) -> str:
    """The rows as a markdown table."""
    head = ["method", "facts at once", "right after", *FIGURES, "perplexity", "‖Δ‖/‖W‖"]
    lines = [f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for name, (label, method, _, size) in ROWS.items():
        if name not in rows:
            continue
        row = rows[name]
        after, change = "", ""
        if method != "none":
            records = row["operations"]
            after = f"{sum(r['after']['em'] * r['after']['n'] for r in records) / len(row['facts']):.2f}"
            norms = [sum(w[which] ** 2 for w in row["weights"].values()) for which in ("delta_norm", "weight_norm")]
            change = f"{(norms[0] / norms[1]) ** 0.5:.3f}"
        figures = [mean(fact[f] for fact in row["facts"] if fact[f] is not None) for f in FIGURES]
        cells = [label, "" if method == "none" else str(size), after, *(f"{figure:.2f}" for figure in figures)]
        cells += [f"{row['perplexity']:.1f}", change]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=Path, help="a file of CounterFact records")
    parser.add_argument("--corpus", type=Path, help="a text file, for second moments and perplexity")
    parser.add_argument("--ledgers", type=Path, default=Path("sequential_ledgers"), help="a folder for the edits")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="rows to measure (default: all)")
    parser.add_argument("--kept", type=Path, default=KEPT, help="what was measured is kept here")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table from what there is")
    arguments = parser.parse_args()
    logging.getLogger("lm_eval_edit").setLevel(logging.ERROR)
    if not arguments.table:
        if arguments.facts is None or arguments.corpus is None:
            parser.error("--facts FILE and --corpus FILE are needed: neither is ours to distribute")
        bench = SequentialBench(arguments.facts, arguments.corpus, arguments.ledgers, arguments.kept)
        for name in arguments.rows:
            bench.row(name)
            print(table(read(arguments.kept)), flush=True)
    replace_between(PAGE, BEGIN, END, table(read(arguments.kept)))


if __name__ == "__main__":
    main()
