"""Edited as text or inside the chat template, asked as text or inside the chat template: four figures of each edit.

    python examples/real_chat.py --facts counterfact.jsonl             # docs/chat.md, twelve facts
    python examples/real_chat.py --facts ... --n 5 --pretrained FOLDER # fewer facts, another chat model
    python examples/real_chat.py --table                               # the table from what there is

SmolLM2-135M-Instruct (`pretrained=smollm2`), ROME with its defaults, each fact alone in the unedited model. A run that
was stopped goes on where it was: what has been measured of the same model, facts and hyper-parameters is in
docs/chat.json and is not measured again.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from kept import keep, read, replace_between
from tqdm.auto import tqdm

from lm_eval_edit import EditSchedule, Fact, edit_model, load_facts
from lm_eval_edit._support.files import hash_json
from lm_eval_edit._support.versions import versions
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.edits.answers import answers
from lm_eval_edit.edits.source import describe_source, load_source
from lm_eval_edit.facts.chat import chat_frame, in_chat
from lm_eval_edit.facts.fact import in_clear
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.weights.edited import model_fingerprint

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "chat.md"
BEGIN, END = "<!-- table: written by examples/real_chat.py -->", "<!-- end of the table -->"
N = 12
EDITED = {"none": "not edited", "text": "as text", "chat": "inside the template"}
ASKED = {"text": "as text", "chat": "inside the template"}


def asked(model: Any, tokenizer: Any, fact: Fact) -> dict[str, Any]:
    """What the model says of a fact where it stands: its own prompt and its paraphrases.

    Returns:
        `em` (whether every token of o* is the likeliest), `log_prob` of o*, whether o* is likelier than o
        (`prob_success`), and in which share of the paraphrases it is (`paraphrase`; None without any).
    """
    prompts = [fact.text, *(in_clear(paraphrase, fact.subject) for paraphrase in fact.paraphrases)]
    sides = [[fact.continuing(prompt, o) for prompt in prompts] for o in (fact.target_new, fact.target_true)]
    new, true = (answers(model, tokenizer, prompts, side) for side in sides)
    likelier = [a.log_prob > b.log_prob for a, b in zip(new, true, strict=True)]
    own, *others = likelier
    return {
        "em": new[0].exact,
        "log_prob": new[0].log_prob,
        "prob_success": own,
        "paraphrase": mean(others) if others else None,
    }


class Bench:
    """The model, the facts, and what has been measured.

    Args:
        pretrained: The chat model.
        facts: A file of facts with true objects.
        n: How many of them.
        kept: The file that holds what was measured.
        editor, options: The method.
    """

    def __init__(
        self, pretrained: str, facts: Path, n: int, kept: Path, editor: str = "rome", options: dict | None = None
    ):
        self.model, self.tokenizer = load_source(pretrained, dtype="float32", device="cpu")
        self.model.eval()
        self.frame = chat_frame(self.tokenizer)
        everything = load_facts(facts)
        self.facts = [fact for [fact] in EditSchedule(n, 1, seed=0).operations(everything)]
        self.kept, self.editor, self.options, self.templates = kept, editor, options or {}, None
        found, problems = resolve(find_editor(editor), self.model.config, self.options)
        assert found is not None and not problems, problems
        assert not Architecture.discover(self.model).check_layers(found.editor.layers())
        model = describe_source(self.model) | {"fingerprint": model_fingerprint(self.model)}
        model.pop("pretrained", None)  # a path of this machine, perhaps; the fingerprint tells which model it is
        self.settings = {
            "model": model,
            "template": self.frame.template,
            "editor": editor,
            "options": found.editor.describe(),
            "facts": everything.sha256,
        }

    def run(self) -> None:
        """Measure every fact that has not been measured."""
        kept, identity = read(self.kept), hash_json(self.settings)
        if kept.get("identity") != identity:
            kept = {"identity": identity, "settings": self.settings, "versions": versions(), "facts": {}}
        for fact in tqdm(self.facts, desc="facts", unit="fact"):
            if fact.id in kept["facts"]:
                continue
            kept["facts"][fact.id] = self._measure(fact)
            keep(self.kept, kept)

    def _measure(self, fact: Fact) -> dict[str, Any]:
        """{how it is edited: {how it is asked: figures}} of one fact."""
        found = {"none": self._asked(fact)}
        for how in ("text", "chat"):
            ledger = edit_model(
                self.model, self.tokenizer, [fact], editor=self.editor, options=self.options,
                chat_template=how == "chat", context_templates=self.templates, progress=False,
            )  # fmt: skip
            found[how] = self._asked(fact)
            ledger.restore()
            self.templates = ledger.extra["context_templates"]
        return found

    def _asked(self, fact: Fact) -> dict[str, Any]:
        return {
            "text": asked(self.model, self.tokenizer, fact),
            "chat": asked(self.model, self.tokenizer, in_chat(fact, self.frame)),
        }


def table(measured: dict[str, Any]) -> str:
    """The two by two table, with the unedited model above it, in markdown."""
    facts = list(measured["facts"].values())
    lines = [
        "| edited | asked | em | prob_success | paraphrase | mean log p(o*) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for edited, its_name in EDITED.items():
        for where, name in ASKED.items():
            rows = [fact[edited][where] for fact in facts]
            others = [row["paraphrase"] for row in rows if row["paraphrase"] is not None]
            cells = [f"{mean(row[figure] for row in rows):.2f}" for figure in ("em", "prob_success")]
            cells += [f"{mean(others):.2f}" if others else "", f"{mean(row['log_prob'] for row in rows):.1f}"]
            lines.append(f"| {its_name} | {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{len(facts)} facts."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=Path, help="a file of facts with true objects, CounterFact's for one")
    parser.add_argument("--pretrained", default="smollm2", help="a chat model (default: smollm2)")
    parser.add_argument("--n", type=int, default=N, help=f"how many facts (default: {N})")
    parser.add_argument("--kept", type=Path, default=DOCS.with_suffix(".json"), help="what was measured is kept here")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table from what there is")
    arguments = parser.parse_args()
    logging.getLogger("lm_eval_edit").setLevel(logging.ERROR)  # what it says of each edit the table says of all
    if not arguments.table:
        if arguments.facts is None:
            parser.error("--facts FILE is needed: CounterFact's records are not ours to distribute")
        Bench(arguments.pretrained, arguments.facts, arguments.n, arguments.kept).run()
        print(table(read(arguments.kept)), flush=True)
    replace_between(DOCS, BEGIN, END, table(read(arguments.kept)))


if __name__ == "__main__":
    main()
