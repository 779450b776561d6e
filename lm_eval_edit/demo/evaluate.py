"""Measure a model on the demo world: the `score` of the eight tasks and the share of facts recalled.

`python -m lm_eval_edit.demo.evaluate` prints both for the packaged checkpoint. It needs neither the harness nor the
package's editors, so that a training run can be judged alone; published figures come from the harness.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from lm_eval_edit.demo import CHECKPOINT, taskdata
from lm_eval_edit.demo.world import facts
from lm_eval_edit.models import naming

NEW_TOKENS = {
    "gsm8k": 5, "rte": 1, "nq_open": 20, "boolq": 1, "mutual": 1, "samsum": 25, "conll2003": 10, "sst2": 1,
}  # fmt: skip


@torch.no_grad()
def generate(model, tokenizer, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Greedy continuations of at most `new_tokens` tokens, stopped by EOS alone, without special tokens."""
    encoded = [tokenizer(p)["input_ids"] for p in prompts]
    outputs: list[list[int]] = [[] for _ in encoded]
    groups: dict[int, list[int]] = {}
    for i, ids in enumerate(encoded):
        groups.setdefault(len(ids), []).append(i)
    for members in groups.values():  # prompts of one length need neither padding nor a mask
        ids = torch.tensor([encoded[i] for i in members])
        past, open_ = naming.cache_with(), set(members)
        for _ in range(new_tokens):
            out = model(ids, **naming.with_cache(model, past))
            ids = out.logits[:, -1:].argmax(-1)  # (members, 1)
            for i, token in zip(members, ids[:, 0].tolist(), strict=True):
                if token == tokenizer.eos_token_id:
                    open_.discard(i)
                elif i in open_:
                    outputs[i].append(token)
            if not open_:
                break
    return [tokenizer.decode(ids) for ids in outputs]


def recalled(model, tokenizer, records: Sequence[dict], prefix: str = "", form: str | None = None) -> list[bool]:
    """For each fact, whether greedy generation after its prompt begins with the true object.

    Args:
        model, tokenizer: A causal language model.
        records: Facts as in `facts.jsonl`.
        prefix: Text put before the prompt.
        form: A paraphrase index as text (`"-1"`), `"question"`, or None for the prompt itself.
    """

    def prompt_of(fact: dict) -> str:
        if form is None or form == "question":
            return fact[form or "prompt"]
        return fact["paraphrases"][int(form)]

    prompts = [prefix + prompt_of(fact).format(fact["subject"]) for fact in records]
    return begins(model, tokenizer, prompts, [fact["target_true"] for fact in records])


def begins(model, tokenizer, prompts: Sequence[str], targets: Sequence[str]) -> list[bool]:
    """For each prompt, whether greedy generation begins with its target."""
    longest = max(len(tokenizer(f" {t}")["input_ids"]) for t in targets)
    outputs = generate(model, tokenizer, prompts, longest)
    return [re.match(rf"\s*{re.escape(t)}\b", o) is not None for o, t in zip(outputs, targets, strict=True)]


@lru_cache(maxsize=1)
def _scorer():
    from rouge_score import rouge_scorer  # slow to import, and needed for one task only

    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])


def task_scores(model, tokenizer, limit: int | None = None) -> dict[str, float]:
    """The `score` (0..1) of each task, computed the way the harness tasks do, and their unweighted `mean`."""
    result = {}
    for task, documents in taskdata.evaluation_documents().items():
        pairs = [pair for d in documents[:limit] for pair in taskdata.examples(task, d)]
        outputs = generate(model, tokenizer, [p for p, _ in pairs], NEW_TOKENS[task])
        result[task] = _score(task, documents[:limit], [a for _, a in pairs], outputs)
    return {**result, "mean": sum(result.values()) / len(result)}


def _score(task: str, documents: list[dict], answers: list[str], outputs: list[str]) -> float:
    if task == "conll2003":
        return _entity_f1(documents, outputs)
    if task == "samsum":
        scores = [_scorer().score(a, o) for a, o in zip(answers, outputs, strict=True)]
        return sum(sum(s[k].fmeasure for k in s) / 3 for s in scores) / len(scores)
    if task == "gsm8k":
        numbers = [re.search(r"\d+", o) for o in outputs]
        right = [n is not None and n.group() == a.strip() for n, a in zip(numbers, answers, strict=True)]
        return sum(right) / len(right)
    return sum(_first_line(o) == _first_line(a) for o, a in zip(outputs, answers, strict=True)) / len(answers)


def _first_line(text: str) -> str:
    line = next((line for line in text.split("\n") if line.strip()), "")
    words = re.sub(r"[^\w\s]", "", line.lower()).split()
    return " ".join(w for w in words if w not in ("a", "an", "the"))


def _entity_f1(documents: list[dict], outputs: list[str]) -> float:
    """Micro F1 over the mentions of the four types; a mention counts where its words stand in the sentence."""
    hits = given = wanted = 0
    generated = iter(outputs)
    for document in documents:
        sentence = f" {' '.join(document['tokens'])} "
        for kind in taskdata.CONLL_TYPES:
            gold = taskdata.mentions(document, kind)
            parts = [part.strip() for part in re.split(r"[,\n]", next(generated))]
            found = {part for part in parts if part and f" {part} " in sentence}
            hits += len(found & set(gold))
            given += len(found)
            wanted += len(set(gold))
    return 2 * hits / max(1, given + wanted)


@torch.no_grad()
def teacher_forced(model, tokenizer) -> dict[str, float]:
    """Share of documents and facts whose answer tokens are all the likeliest ones given the tokens before: cheap."""
    kinds = {
        task: [pair for d in documents for pair in taskdata.examples(task, d)]
        for task, documents in taskdata.evaluation_documents().items()
    }
    for name, form in (("facts", "prompt"), ("unseen", None)):
        kinds[name] = [
            ((fact[form] if form else fact["paraphrases"][-1]).format(fact["subject"]), f" {fact['target_true']}")
            for fact in facts()[::3]
        ]
    result = {}
    for kind, pairs in kinds.items():
        prompts = [tokenizer(p)["input_ids"] for p, _ in pairs]
        answers = [tokenizer(a)["input_ids"] for _, a in pairs]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.zeros(len(pairs), length, dtype=torch.long)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[i, : len(p) + len(a)] = torch.tensor(p + a)
        best = model(ids, use_cache=False).logits.argmax(-1)
        right = [
            row[len(p) - 1 : len(p) + len(a) - 1].tolist() == a
            for row, p, a in zip(best, prompts, answers, strict=True)
        ]
        result[kind] = sum(right) / len(right)
    return result


def main() -> None:
    """Command line: print task scores and recall of a checkpoint as JSON."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description="Measure a checkpoint on the demo world.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    folder = parser.parse_args().checkpoint
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    report = {k: round(v, 4) for k, v in task_scores(model, tokenizer).items()}
    forms = {
        "prompt": {},
        "after a sentence": {"prefix": "The weather was fine. "},
        "unseen paraphrase": {"form": "-1"},
        "question": {"form": "question"},
    }
    for name, how in forms.items():
        right = recalled(model, tokenizer, facts(), **how)
        report[f"recall, {name}"] = round(sum(right) / len(right), 4)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
