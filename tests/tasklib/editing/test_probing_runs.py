"""`edithurt_probing` of real models: against a plain computation, in other states of the weights, by the commands."""

from __future__ import annotations

import json

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from lm_eval_edit import EditedHFLM
from lm_eval_edit.demo import CHECKPOINT
from lm_eval_edit.tasklib.editing.probing import said
from tests.support.harness_runs import evaluate, figures

NAMES = ("negation", "factcheck", "wild")
TASKS = ["edithurt_probing"]


@pytest.fixture(scope="module")
def edited():
    options = {"pretrained": "demo", "editor": "rome", "n_edits": 4}
    return EditedHFLM(editor="rome", n_edits=4, device="cpu", batch_size=8), options


@torch.no_grad()
def log_prob(lm, prompt, text):
    """(log-probability of a text behind a prompt, whether all its tokens are the likeliest), one forward pass."""
    context, whole = lm.tokenizer.encode(prompt), lm.tokenizer.encode(prompt + text)
    assert whole[: len(context)] == context
    rows = lm.model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(dim=-1)
    pairs = [(rows[place - 1], whole[place]) for place in range(len(context), len(whole))]
    return sum(float(row[token]) for row, token in pairs), all(int(row.argmax()) == token for row, token in pairs)


@torch.no_grad()
def greedily(lm, prompt, n):
    ids = lm.tokenizer.encode(prompt)
    start = len(ids)
    while len(ids) < start + n:
        token = int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == lm.tokenizer.eos_token_id:
            break
        ids.append(token)
    return lm.tokenizer.decode(ids[start:])


def plainly(lm, fact):
    """The figures of one fact (a statement to be continued) by the definitions in the README of the tasks."""
    new, true = f" {fact.target_new}", f" {fact.target_true}"
    answered = log_prob(lm, fact.text, new)
    prompts = [f"It is not true that {fact.text}", *([f"{fact.text} not"] if fact.text.endswith(" is") else [])]
    negated = [log_prob(lm, prompt, new) for prompt in prompts]
    negation = [
        {
            "answered": answered[1],
            "negated": each[1],
            "shortcut": answered[1] and each[1],
            "score": answered[1] and not each[1],
            "prob_answered": answered[0] > log_prob(lm, fact.text, true)[0],
            "prob_negated": each[0] > log_prob(lm, prompt, true)[0],
            "answered_old": log_prob(lm, fact.text, true)[1],
            "shortcut_old": log_prob(lm, fact.text, true)[1] and log_prob(lm, prompt, true)[1],
        }
        for prompt, each in zip(prompts, negated, strict=True)
    ]
    right = []
    for text, verdict in ((new, "True"), (true, "False")):
        for first, second in (("True", "False"), ("False", "True")):
            claim = f"Statement: {fact.text}{text}."
            words = f"{claim}\nIs this statement {first} or {second}?\nAnswer:"
            right.append(_likelier(lm, words, verdict, "False" if verdict == "True" else "True"))
            letters = f"{claim}\nIs this statement true?\nA. {first}\nB. {second}\nAnswer:"
            right.append(_likelier(lm, letters, *("AB" if first == verdict else "BA")))
    answer = greedily(lm, fact.question.replace("{}", fact.subject), 40)
    first = answer.strip().splitlines()[0].split(".")[0]
    wild = {"em": said.normalise(first) == said.normalise(new), "contains": new.strip() in first.split()}
    return negation, sum(right) / len(right), wild


def _likelier(lm, prompt, one, other):
    return log_prob(lm, prompt, f" {one}")[0] > log_prob(lm, prompt, f" {other}")[0]


def mean(values):
    values = [float(value) for value in values]
    return sum(values) / len(values)


@pytest.mark.parametrize("when", ["after_all", "after_each"])
def test_figures_are_those_of_a_plain_computation(edited, when):
    lm, options = edited
    lm.apply()
    results = evaluate(lm, options | {"edit_when": when}, TASKS)
    found = []
    for number, (fact,) in enumerate(lm.plan.operations, start=1):
        lm.ledger.apply(number if when == "after_each" else 4)
        found.append(plainly(lm, fact))
    lm.ledger.apply(4)
    negation = [row for rows, _, _ in found for row in rows]
    assert figures(results, "negation") == pytest.approx(
        {name: mean(row[name] for row in negation) for name in negation[0]}
    )
    assert figures(results, "factcheck")["score"] == pytest.approx(mean(score for _, score, _ in found))
    for name in ("em", "contains"):
        assert figures(results, "wild")[name] == pytest.approx(mean(row[name] for _, _, row in found)), name
    assert figures(results, "negation")["answered"] > 0.5, "these edits take; else little is compared"
    for sample in results["samples"]["edithurt_negation"]:
        states = [args[-1].get("after_operations") for args in sample["arguments"]]
        assert states == [sample["doc"]["edit"] + 1 if when == "after_each" else None] * len(states)


def test_a_plain_model_of_the_harness_gives_the_same(edited):
    lm, options = edited
    lm.apply(0)
    ours = evaluate(lm, options | {"editor": "none"}, TASKS)
    plain = HFLM(str(CHECKPOINT), device="cpu", batch_size=8)
    theirs = evaluate(plain, {"pretrained": str(CHECKPOINT), "edit_dataset": "demo", "n_edits": 4}, TASKS)
    lm.apply()
    for name in NAMES:
        assert figures(theirs, name) == pytest.approx(figures(ours, name)), name
    assert figures(ours, "negation")["answered_old"] == 1 and figures(ours, "negation")["shortcut_old"] > 0.5


def test_inside_the_chat_template_of_the_model(edited):
    """By HFLM's own door, whose template asks as the raw task does: the same answers."""
    lm, _ = edited
    lm.apply()
    with_template = HFLM(lm.model, tokenizer=lm.tokenizer, device="cpu", batch_size=8)
    with_template.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    metadata = {"pretrained": "demo", "n_edits": 4}
    try:
        results = evaluate(with_template, metadata, ["edithurt_wild_chat", "edithurt_wild"])
    finally:
        lm.tokenizer.chat_template = None
    assert figures(results, "wild_chat") == figures(results, "wild") and figures(results, "wild")["contains"] > 0.5


@pytest.mark.slow
def test_the_commands(tmp_path):
    """The stock command before and after, compared."""
    from tests.support.console_scripts import lm_eval, results_of, samples_of

    for name, editor in (("before", "none"), ("after", "rome")):
        arguments = f"editor={editor},n_edits=6"
        lm_eval(
            "--model", "edited_hf", "--model_args", arguments, "--tasks", "edithurt_probing", "--output_path", name,
            "--log_samples", cwd=tmp_path,
        )  # fmt: skip
    after = results_of(tmp_path / "after")
    ids = after["config"]["edit"]["fact_ids"]
    for task in NAMES:
        samples = samples_of(tmp_path / "after", f"edithurt_{task}")
        assert list(dict.fromkeys(sample["doc"]["fact_id"] for sample in samples)) == ids
        for metric, value in figures(after, task).items():
            assert isinstance(after["results"][f"edithurt_{task}"][f"{metric}_stderr,none"], float), (
                task,
                metric,
                value,
            )
    arguments = ("compare", "before", "after", "--format", "json", "--flips", "flips.jsonl")
    (compared,) = json.loads(lm_eval(*arguments, cwd=tmp_path, program="lm-eval-edit").stdout)["comparisons"]
    rows = {(row["task"], row["metric"]): row for row in compared["rows"]}
    assert rows["edithurt_negation", "answered"]["verdict"] == "improved"
    assert rows["edithurt_negation", "shortcut"]["verdict"] == "regressed"
    assert rows["edithurt_negation", "shortcut"]["clusters"] == 6
    (group,) = compared["groups"]
    assert (group["task"], group["measures"], group["verdict"]) == ("edithurt_probing", "edit_quality", "improved")
    for task in NAMES:
        assert {metric for name, metric in rows if name == f"edithurt_{task}"} == figures(after, task).keys()
    assert "the target is the likelier of two in" in (tmp_path / "flips.jsonl").read_text()


def test_a_sweep_asks_it_before_and_after(tmp_path):
    from lm_eval_edit.sweep.reading import load_sweep
    from tests.support.small_sweeps import sweep

    sweep(tmp_path, tasks=["edithurt_probing"], n_edits=[0, 2], model_args={}, limit=None)
    (row,) = load_sweep(tmp_path).rows
    assert row.before.tasks() == [f"edithurt_{name}" for name in NAMES] and row.baseline.tasks() == []
    before, after = (cell.value("edithurt_negation", "answered").value for cell in (row.before, *row.cells))
    assert (before, after) == (0.0, 1.0)
