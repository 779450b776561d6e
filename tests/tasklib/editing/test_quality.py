"""The edit-quality tasks as the harness runs them, against a plain loop: tokenise, forward, argmax, log-softmax."""

from __future__ import annotations

import json
from statistics import fmean

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import EditedHFLM, UserError, load_facts
from lm_eval_edit.facts.fact import in_clear
from lm_eval_edit.tasklib.editing.metrics import SCRIPT
from tests.support import harness_runs
from tests.support.harness_runs import evaluate

FAST = {
    "v_num_grad_steps": 25,
    "v_lr": 0.5,
    "kl_factor": 0.0,
    "clamp_norm_factor": 10,
    "context_templates": ["{}", "It is said that. {}"],
    "layers": [2],
}


def figures(results, kind):
    """The figures of our own definitions; the published ones have a test file of their own."""
    return {name: value for name, value in harness_runs.figures(results, kind).items() if name not in SCRIPT}


KINDS = ("efficacy", "generalization", "locality", "counterfact")


@pytest.fixture(scope="module")
def facts(reference, tmp_path_factory):
    """The reference facts with paraphrases and probes, one probe of them CounterFact's; objects that begin alike."""
    records = json.loads((reference / "facts.json").read_text())
    for record, other in zip(records, records[1:] + records[:1], strict=True):
        record["id"], record["target_true"] = str(record.pop("case_id")), record.pop("ground_truth")
        record["paraphrases"] = [f"Well. {record['prompt']}", f"Once more: {record['prompt']}"]
        record["locality"] = [
            {"prompt": other["prompt"], "answer": other.get("target_true") or other["ground_truth"]},
            {"prompt": f"Now, {other['prompt']}", "answer": record["target_true"]},
        ]
    records[0] |= {"target_new": "University of Oslo", "target_true": "University of Rome"}
    records[0]["locality"][1]["answer"] = "University of Rome"
    file = tmp_path_factory.mktemp("facts") / "facts.json"
    file.write_text(json.dumps(records))
    return str(file)


# ------------------------------------------------------------------------------------------------- a plain computation


def plainly(lm, prompt, text):
    """(share of the text's tokens that are the likeliest, all of them are, log-probability), one forward pass."""
    whole = lm.tokenizer.encode(prompt + text)
    context = len(lm.tokenizer.encode(prompt))
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([whole])).logits[0]
    right, log_prob = [], 0.0
    for position in range(context, len(whole)):
        row = logits[position - 1].double()
        right.append(int(row.argmax()) == whole[position])
        log_prob += float(row.log_softmax(dim=0)[whole[position]])
    return fmean(right), float(all(right)), log_prob


def greedily(lm, prompt, n):
    ids = lm.tokenizer.encode(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids = [*ids, int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-n:]


def asked(lm, prompt, target, other):
    token_acc, em, log_prob = plainly(lm, prompt, target)
    return {"em": em, "token_acc": token_acc, "prob_success": float(log_prob > plainly(lm, prompt, other)[2])}


def n_tokens(lm, prompt, text):
    return len(lm.tokenizer.encode(prompt + text)) - len(lm.tokenizer.encode(prompt))


def expected(lm, facts, states):
    """All figures, the i-th fact in the i-th state."""
    rows = {kind: [] for kind in KINDS}
    for fact, state in zip(facts, states, strict=True):
        new, true = " " + fact.target_new, " " + fact.target_true
        lm.ledger.apply(state)
        rows["efficacy"].append(asked(lm, fact.text, new, true))
        paraphrases = [asked(lm, in_clear(prompt, fact.subject), new, true) for prompt in fact.paraphrases]
        rows["generalization"] += paraphrases
        near = []
        for probe in fact.locality:
            lm.ledger.apply(state)
            row = asked(lm, probe.prompt, " " + probe.answer, new)
            n = n_tokens(lm, probe.prompt, " " + probe.answer)
            now = greedily(lm, probe.prompt, n)
            lm.ledger.apply(0)
            row |= {"correct": row.pop("em"), "unchanged": float(greedily(lm, probe.prompt, n) == now)}
            rows["locality"].append(row)
            if probe.answer == fact.target_true:
                near.append(row["prob_success"])
        es = rows["efficacy"][-1]["prob_success"]
        ps = fmean(row["prob_success"] for row in paraphrases)
        rows["counterfact"].append({"es": es, "ps": ps, "ns": fmean(near)})
    found = {kind: {name: fmean(row[name] for row in some) for name in some[0]} for kind, some in rows.items()}
    for kind, headline in (("efficacy", "em"), ("generalization", "em"), ("locality", "correct")):
        found[kind]["score"] = found[kind][headline]
    means = found["counterfact"].values()
    found["counterfact"]["score"] = 3 / sum(1 / mean for mean in means) if all(means) else 0.0
    return found


@pytest.fixture(scope="module", params=["gpt2-tiny", "llama-tiny"])
def edited(request, reference, facts):
    options = {
        "pretrained": str(reference / "models" / request.param),
        "editor": "rome",
        "n_edits": 6,
        "edit_dataset": facts,
        "edit_config": FAST,
    }
    return EditedHFLM(**options, device="cpu", batch_size=4), options


@pytest.mark.parametrize("when", ["after_all", "after_each"])
def test_every_figure_is_that_of_a_plain_computation(edited, when):
    lm, options = edited
    lm.apply()
    results = evaluate(lm, options | {"edit_when": when})
    order = [fact for operation in lm.plan.operations for fact in operation]
    states = range(1, 7) if when == "after_each" else [6] * 6
    wanted = expected(lm, order, states)
    for kind in KINDS:
        assert figures(results, kind) == pytest.approx(wanted[kind], abs=1e-12), kind
    values = {value for kind in KINDS for value in wanted[kind].values()}
    assert len(values) > 6, "too much is 0 or 1 for this to tell anything"


def test_em_is_what_greedy_generation_says(edited):
    lm, options = edited
    lm.apply()
    results = evaluate(lm, options, ["edithurt_editing"])
    verdicts = set()
    for kind in ("efficacy", "generalization", "locality"):
        for sample in results["samples"][f"edithurt_{kind}"]:
            doc = sample["doc"]
            n = n_tokens(lm, doc["prompt"], doc["target"])
            said = lm.tokenizer.decode(greedily(lm, doc["prompt"], n))
            assert (said.strip() == doc["target"].strip()) == bool(sample["score"]), (said, doc)
            verdicts.add(sample["score"])
    assert verdicts == {0.0, 1.0}


def test_another_batch_size_of_the_harness_changes_nothing(edited):
    lm, options = edited
    lm.apply()
    first = evaluate(lm, options)
    lm.batch_size_per_gpu = 16
    second = evaluate(lm, options)
    assert [figures(first, kind) for kind in KINDS] == [figures(second, kind) for kind in KINDS]


# ------------------------------------------------------------------------------------------------------ other models


def test_plain_hf_and_an_unedited_model_answer_the_same(edited):
    lm, options = edited
    before = options | {"editor": "none"}
    unedited = evaluate(EditedHFLM(**before, device="cpu", batch_size=4), before)
    plain = {name: before[name] for name in ("pretrained", "n_edits", "edit_dataset")}
    theirs = evaluate(HFLM(options["pretrained"], device="cpu", batch_size=4), plain)
    for kind in KINDS:
        ours = figures(unedited, kind)
        # Nobody knows what the unedited self of a plain model is.
        assert figures(theirs, kind) == {name: value for name, value in ours.items() if name != "unchanged"}
    assert figures(unedited, "locality")["unchanged"] == 1.0
    lm.apply(0)
    restored = evaluate(lm, options)
    assert [figures(restored, kind) for kind in KINDS] == [figures(unedited, kind) for kind in KINDS]


def test_without_a_tokenizer_objects_are_asked_whole(edited):
    """Models behind an API: no tokens to count, the other figures the same."""
    lm, options = edited
    lm.apply()
    full = figures(evaluate(lm, options), "efficacy")
    blind = {name: value for name, value in options.items() if name not in ("pretrained", "editor")}
    plain = HFLM(lm.model, tokenizer=lm.tokenizer, device="cpu", batch_size=lm.batch_size)
    some = figures(evaluate(plain, blind | {"model": "an-api"}), "efficacy")
    assert "token_acc" not in some and some == {name: full[name] for name in some}


def test_reference_tokenizers_find_the_demo_facts(reference):
    """The tasks of a model use that model's tokenizer, not the demo's."""
    metadata = {"pretrained": str(reference / "models/gpt2-tiny"), "edit_dataset": "demo", "n_edits": 4}
    model = HFLM(
        AutoModelForCausalLM.from_pretrained(metadata["pretrained"]),
        tokenizer=AutoTokenizer.from_pretrained(metadata["pretrained"]),
        device="cpu",
    )
    samples = evaluate(model, metadata, ["edithurt_efficacy"])["samples"]["edithurt_efficacy"]
    wanted = {fact.id: len(model.tokenizer.encode(fact.target)) for fact in load_facts("demo")}
    for sample in samples:
        tokens = sum(r[1] for r in sample["filtered_resps"] if r[0] == "target")
        assert tokens == wanted[sample["doc"]["fact_id"]]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"n_edits": 3}, "n_edits=3 in the tasks, 2 in the model"),
        (
            {"edit_seed": 1, "edit_offset": 4},
            "edit_seed=1 in the tasks, 0 in the model; edit_offset=4 in the tasks, 0 in",
        ),
        (
            {"edit_batch_size": 2, "editor": "memit"},
            "editor=memit in the tasks, rome in the model; edit_batch_size=2 in",
        ),
        ({"editor": "none"}, "editor=none in the tasks, rome in the model"),
        ({"edit_dataset": "demo"}, "the facts are of demo in the tasks, of .*facts.json in the model"),
    ],
)
def test_tasks_about_other_edits_than_the_models_are_refused(reference, facts, metadata, message):
    """Metadata wins over the model's arguments in the tasks, and the model never sees it."""
    model_args = {
        "pretrained": str(reference / "models" / "gpt2-tiny"), "editor": "rome", "n_edits": 2, "edit_dataset": facts,
    }  # fmt: skip
    lm = EditedHFLM(**model_args, edit_config=FAST, device="cpu")
    with pytest.raises(UserError, match=f"other edits than the model carries: {message}"):
        evaluate(lm, model_args | metadata, ["edithurt_efficacy"])
    evaluate(lm, model_args, ["edithurt_efficacy"])


def test_predict_only_logs_the_samples_and_scores_nothing():
    lm, metadata = EditedHFLM(n_edits=2, device="cpu"), {"pretrained": "demo", "editor": "none", "n_edits": 2}
    found = evaluate(lm, metadata, predict_only=True)
    for kind in KINDS:
        assert found["samples"][f"edithurt_{kind}"] and not figures(found, kind)
