"""CounterFact and ZsRE as the field's scripts score them, against a plain loop over logits and those scripts."""

from __future__ import annotations

import json
import math
import os
import subprocess
from statistics import fmean

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from lm_eval_edit import EditedHFLM
from lm_eval_edit.tasklib.editing import documents, metrics
from tests.support.harness_runs import evaluate
from tests.support.harness_runs import figures as figures_of
from tests.support.made_up_tokenizers import llama_for, sentencepiece

TASKS = ("edithurt_counterfact", "edithurt_zsre")
FAST = {
    "v_num_grad_steps": 20,
    "v_lr": 0.5,
    "kl_factor": 0.0,
    "clamp_norm_factor": 10,
    "context_templates": ["{}", "It is said that. {}"],
    "layers": [2],
}


def counterfact_records(facts):
    """CounterFact's own form; the first has objects of several tokens that begin alike, the second odd white space."""
    records = []
    for number, (fact, other) in enumerate(zip(facts, facts[1:] + facts[:1], strict=True)):
        prompt = fact["prompt"].replace(fact["subject"], "{}", 1)
        true = other["ground_truth"]
        record = {
            "case_id": number,
            "requested_rewrite": {
                "prompt": prompt,
                "subject": fact["subject"],
                "target_new": {"str": fact["target_new"], "id": f"Q{number}"},
                "target_true": {"str": true, "id": f"Q{number + 100}"},
                "relation_id": "P1",
            },
            "paraphrase_prompts": [f"Well. {fact['prompt']}", f"Once more: {fact['prompt']}"],
            "neighborhood_prompts": [other["prompt"], f"Now, {other['prompt']}", f"So {other['prompt']}"],
            "generation_prompts": [f"{fact['subject']} is", f"{fact['subject']} lives in"],
        }
        records.append(record)
    records[0]["requested_rewrite"]["target_new"]["str"] = "University of Oslo in Norway"
    records[0]["requested_rewrite"]["target_true"]["str"] = "University of Rome"
    records[1]["paraphrase_prompts"] = [p + " " for p in records[1]["paraphrase_prompts"]]  # two spaces in the scripts
    records[2]["neighborhood_prompts"][0] += ' "'  # no space of ours before the object, one of theirs
    return records


@pytest.fixture(scope="module")
def records(reference):
    return counterfact_records(json.loads((reference / "facts.json").read_text()))


@pytest.fixture(scope="module")
def file(records, tmp_path_factory):
    path = tmp_path_factory.mktemp("facts") / "counterfact.json"
    path.write_text(json.dumps(records))
    return str(path)


# ------------------------------------------------------------------------------------------------- a plain computation


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double()


def plainly(model, tokenizer, prompt, text):
    """(mean NLL of the object's own tokens, all of them the likeliest), one forward pass of the whole."""
    start, whole = len(tokenizer(prompt)["input_ids"]), tokenizer(f"{prompt} {text}")["input_ids"]
    wanted = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
    rows = logits_of(model, whole)[start - 1 : start - 1 + len(wanted)]
    nll = [-float(row.log_softmax(dim=0)[token]) for row, token in zip(rows, wanted, strict=True)]
    return fmean(nll), all(int(row.argmax()) == token for row, token in zip(rows, wanted, strict=True))


def rows_of(record):
    rewrite = record["requested_rewrite"]
    return (
        (rewrite["prompt"].format(rewrite["subject"]),),
        tuple(record["paraphrase_prompts"]),
        tuple(record["neighborhood_prompts"]),
        rewrite["target_new"]["str"],
        rewrite["target_true"]["str"],
    )


def counterfact_figures(model, tokenizer, records):
    """What eval_utils_counterfact.py and summarize.py make of them, by the description of their definitions."""
    facts = []
    for record in records:
        *kinds, new, true = rows_of(record)
        row = {}
        for letter, prompts in zip("epn", kinds, strict=True):
            right, wrong = (true, new) if letter == "n" else (new, true)
            asked = [(plainly(model, tokenizer, p, right), plainly(model, tokenizer, p, wrong)) for p in prompts]
            row[f"{letter}s_script"] = fmean(good[0] < bad[0] for good, bad in asked)
            row[f"{letter}m_script"] = fmean(math.exp(-good[0]) - math.exp(-bad[0]) for good, bad in asked)
            row[f"{letter}s_acc"] = fmean(good[1] for good, _ in asked)
        facts.append(row)
    found = {name: fmean(row[name] for row in facts) for name in facts[0]}
    three = [found[f"{letter}s_script"] for letter in "epn"]
    return found | {"score_script": 3 / sum(1 / each for each in three) if all(three) else 0.0}


def zsre_figures(model, tokenizer, records):
    """The share of tokens that are the likeliest, each after the text before it."""

    def shares(prompts, text):
        asked = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"]] * len(prompts)
        right = []
        for prompt, wanted in zip(prompts, asked, strict=True):
            for place, token in enumerate(wanted):
                before = prompt + tokenizer.decode(wanted[:place])
                right.append(int(logits_of(model, tokenizer(before)["input_ids"])[-1].argmax()) == token)
        return right

    rows = []
    for record in records:
        rewrite, paraphrases, near, new, true = rows_of(record)
        kinds = shares(rewrite, new), shares(paraphrases, new), shares(near, true)
        rows.append([fmean(each) for each in kinds])
    means = [fmean(row[i] for row in rows) for i in range(3)]
    return dict(zip(metrics.ZSRE, means, strict=True)) | {
        "score": 3 / sum(1 / each for each in means) if all(means) else 0.0
    }


def in_order(lm, records):
    """The records of the facts that a model is edited with."""
    ids = [fact.id for operation in lm.plan.operations for fact in operation]
    return [records[int(each)] for each in ids]


@pytest.fixture(scope="module", params=["gpt2-tiny", "llama-tiny"])
def edited(request, reference, file):
    options = {
        "pretrained": str(reference / "models" / request.param),
        "editor": "rome",
        "n_edits": 6,
        "edit_dataset": file,
        "edit_config": FAST,
    }
    return EditedHFLM(**options, device="cpu", batch_size=4), options


@pytest.fixture(scope="module")
def found(edited):
    return evaluate(*edited, TASKS)


def some(found, names):
    return {name: found[name] for name in names}


def test_the_published_figures_are_those_of_a_plain_computation(edited, found, records):
    lm, _ = edited
    wanted = counterfact_figures(lm.model, lm.tokenizer, in_order(lm, records))
    ours = figures_of(found, "counterfact")
    assert some(ours, wanted) == pytest.approx(wanted, abs=1e-6)
    assert set(wanted) == set(metrics.SCRIPT)
    values = found["results"]["edithurt_counterfact"]
    assert all(isinstance(values[f"{name}_stderr,none"], float) for name in wanted)
    assert len({round(value, 6) for value in wanted.values()}) > 4, "too much is 0 or 1 for this to tell anything"


def test_zsre_is_that_of_a_plain_computation(edited, found, records):
    lm, _ = edited
    plain = [record for record in in_order(lm, records) if record["case_id"] not in (1, 2)]  # odd white space
    wanted = {record["case_id"]: zsre_figures(lm.model, lm.tokenizer, [record]) for record in plain}
    for sample in found["samples"]["edithurt_zsre"]:
        if (number := int(sample["doc"]["fact_id"])) in wanted:
            assert some(sample, metrics.ZSRE) == pytest.approx(some(wanted[number], metrics.ZSRE), abs=1e-12)
    assert len(wanted) >= 3


def test_only_what_differs_is_asked_again(edited, found):
    """One space and the same tokens is the rule; the published way is asked apart where a prompt makes it another."""
    apart = set()
    for sample in found["samples"]["edithurt_counterfact"]:
        roles = [role for role, _, _ in sample["filtered_resps"]]
        if any(role.startswith(metrics.PUBLISHED) for role in roles):
            apart.add(sample["doc"]["fact_id"])
    lm, _ = edited
    assert apart <= {"1", "2"}
    assert apart == {"1", "2"} & {fact.id for operation in lm.plan.operations for fact in operation}


def test_plain_hf_and_another_batch_size_give_the_same(edited):
    _, options = edited
    plain = {name: options[name] for name in ("pretrained", "n_edits", "edit_dataset")}
    theirs = evaluate(HFLM(options["pretrained"], device="cpu", batch_size=16), plain, TASKS)
    before = evaluate(EditedHFLM(**options | {"editor": "none"}, device="cpu"), options | {"editor": "none"}, TASKS)
    for task in ("counterfact", "zsre"):
        assert figures_of(theirs, task) == pytest.approx(figures_of(before, task), abs=1e-6)


def test_models_that_are_asked_in_text(edited, found, monkeypatch):
    """Such as those behind an API: their tokenizer, which the run names, counts; without one nothing is claimed."""
    lm, options = edited
    monkeypatch.setattr("lm_eval_edit.harness.exact_requests.answers_tokens", lambda lm: False)
    as_text = figures_of(evaluate(lm, options, TASKS), "counterfact")
    exact = figures_of(found, "counterfact")
    close = [name for name in exact if name.startswith("e")]  # the first prompts have no odd white space
    assert some(as_text, close) == pytest.approx(some(exact, close), abs=1e-6)
    blind = {name: value for name, value in options.items() if name not in ("pretrained", "editor")}
    plain = HFLM(lm.model, tokenizer=lm.tokenizer, device="cpu", batch_size=8)
    unknown = evaluate(plain, blind | {"model": "an-api"}, TASKS)
    names = set(figures_of(unknown, "counterfact"))
    assert names == {"score", "es", "ps", "ns"} and not figures_of(unknown, "zsre")


@pytest.mark.parametrize("kind", ["metaspace", "prepend"])
def test_zsre_of_a_sentencepiece_vocabulary_is_the_accuracy_of_the_objects_tokens(kind, tmp_path):
    """Alone, " Oslo" has a word boundary more than behind a prompt; no model is asked for that."""
    tokenizer, cities = sentencepiece(kind), ("Oslo", "New York")
    file = tmp_path / "facts.json"
    file.write_text(
        json.dumps(
            [
                {
                    "id": str(number), "subject": "Rome", "prompt": "The city of {} is in", "target_new": city,
                    "paraphrases": ["Rome is in"], "locality": [{"prompt": "The city is", "answer": "Os"}],
                }
                for number, city in enumerate(cities)
            ]
        )
    )  # fmt: skip
    options = {"model": "an-llm", "n_edits": 2, "edit_dataset": str(file), "tokenizer": tokenizer}
    lm = HFLM(llama_for(tokenizer), tokenizer=tokenizer, device="cpu", batch_size=4)
    found = evaluate(lm, options, ("edithurt_zsre", "edithurt_efficacy"))
    asked = {sample["doc"]["fact_id"]: sample for sample in found["samples"]["edithurt_efficacy"]}
    for sample in found["samples"]["edithurt_zsre"]:
        own, alike = (
            [response for role, _, response in each["filtered_resps"] if role in ("efficacy 0 target", "target")]
            for each in (sample, asked[sample["doc"]["fact_id"]])
        )
        assert own == alike and len(own) > 1


# ------------------------------------------------------------------------------------------------------- the documents


def test_the_mark_of_zsres_questions(data):
    docs, _ = documents.load("zsre", {"edit_dataset": str(data / "zsre.jsonl"), "n_edits": 3})
    assert all(doc["neighbourhood"][0].startswith("nq question:") for doc in docs)
    assert all(doc["neighbourhood"][0].endswith("?") and not doc["neighbourhood"][0].endswith("??") for doc in docs)
    assert all(doc["target"].startswith(" ") and doc["answers"][0].startswith(" ") for doc in docs)


# --------------------------------------------------------------------------------- the released code, run beside ours


@pytest.fixture(scope="module")
def released():
    """The functions of a clone of kmeng01/memit, on the CPU."""
    path = os.environ.get("MEMIT_PATH")
    if not path:
        pytest.skip("MEMIT_PATH names no clone of kmeng01/memit")
    pytest.importorskip("nltk")
    pytest.importorskip("sklearn")

    def source(name):
        return subprocess.run(
            ["git", "-C", path, "show", f"HEAD:experiments/py/{name}.py"], check=True, capture_output=True, text=True
        ).stdout

    space = {}
    for name in ("eval_utils_counterfact", "eval_utils_zsre"):
        kept = [line for line in source(name).splitlines() if not line.startswith(("from dsets", "from util"))]
        text = "\n".join(kept).replace('"cuda"', '"cpu"').replace(".A\n", ".toarray()\n")
        given = {"AttributeSnippets": object, "__name__": name}
        exec(compile(text, name, "exec"), given)
        space[name] = given
    return space


def test_the_released_counterfact_script_gives_the_same(released, edited, found, records):
    lm, _ = edited
    script = released["eval_utils_counterfact"]
    lm.tokenizer.padding_side = "right"
    for sample in found["samples"]["edithurt_counterfact"]:
        *kinds, new, true = rows_of(records[int(sample["doc"]["fact_id"])])
        which = [kind == 2 for kind, prompts in enumerate(kinds) for _ in prompts]
        flat = [prompt for prompts in kinds for prompt in prompts]
        # Of models that put a token before every text, the field's copies for Llama leave it off the objects.
        bare = _WithoutFirst(lm.tokenizer) if len(lm.tokenizer("")["input_ids"]) else lm.tokenizer
        probs, correct = script["test_batch_prediction"](lm.model, bare, flat, which, new, true)
        start = 0
        for letter, prompts in zip("epn", kinds, strict=True):
            some_probs = probs[start : start + len(prompts)]
            sign = -1 if letter == "n" else 1
            success = [sign * (p["target_true"] - p["target_new"]) > 0 for p in some_probs]
            margin = [sign * (math.exp(-p["target_new"]) - math.exp(-p["target_true"])) for p in some_probs]
            assert sample[f"{letter}s_script"] == pytest.approx(fmean(success))
            assert sample[f"{letter}m_script"] == pytest.approx(fmean(margin), abs=1e-6)
            assert sample[f"{letter}s_acc"] == pytest.approx(fmean(correct[start : start + len(prompts)]))
            start += len(prompts)


class _WithoutFirst:
    """A tokenizer that leaves its first special token off single texts that begin with a space: the objects."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, texts, **how):
        if isinstance(texts, str) and texts.startswith(" "):
            how["add_special_tokens"] = False
        return self._tokenizer(texts, **how)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def test_the_released_zsre_script_gives_the_same(released, edited, found, records):
    lm, _ = edited
    script = released["eval_utils_zsre"]
    lm.tokenizer.padding_side = "right"
    tokenizer = _ObjectsAlone(lm.tokenizer)
    compared = 0
    for sample in found["samples"]["edithurt_zsre"]:
        record = records[int(sample["doc"]["fact_id"])]
        if record["case_id"] in (1, 2):
            continue
        answer = tokenizer(" " + record["requested_rewrite"]["target_true"]["str"])["input_ids"]
        near = [
            {"prompt": prompt + tokenizer.decode(answer[:i]), "target": tokenizer.decode(answer[i])}
            for prompt in record["neighborhood_prompts"]
            for i in range(len(answer))
        ]
        theirs = script["compute_rewrite_quality_zsre"](
            lm.model, tokenizer, record | {"neighborhood_prompts": near}, None, None
        )
        for name, kind in zip(metrics.ZSRE, ("rewrite", "paraphrase", "neighborhood"), strict=True):
            assert sample[name] == pytest.approx(fmean(theirs[f"{kind}_prompts_correct"])), (name, record)
        compared += 1
    assert compared >= 3


class _ObjectsAlone(_WithoutFirst):
    """The same for the objects' tokens, which the script decodes one by one and tokenises again."""

    def __call__(self, texts, **how):
        if (
            isinstance(texts, list)
            and max(len(self._tokenizer.encode(t, add_special_tokens=False)) for t in texts) == 1
        ):
            how["add_special_tokens"] = False
        return super().__call__(texts, **how)


# --------------------------------------------------------------------------------------------------------- a real model


@pytest.mark.real
def test_a_real_model_agrees_with_the_plain_computation(data):
    path = os.environ.get("SMOLLM2")
    if not path:
        pytest.skip("SMOLLM2=<folder> names no checkpoint of SmolLM2")
    options = {"pretrained": path, "n_edits": 3, "edit_dataset": str(data / "counterfact.jsonl")}
    lm = HFLM(path, device="cpu", batch_size=8)
    found = evaluate(lm, options, TASKS)
    by_id = {
        str(record["case_id"]): record
        for record in map(json.loads, (data / "counterfact.jsonl").open(encoding="utf-8"))
    }
    chosen = [by_id[sample["doc"]["fact_id"]] for sample in found["samples"]["edithurt_counterfact"]]
    wanted = counterfact_figures(lm.model, lm.tokenizer, chosen)
    assert some(figures_of(found, "counterfact"), wanted) == pytest.approx(wanted, abs=1e-6)
    wanted = zsre_figures(lm.model, lm.tokenizer, chosen)
    assert some(figures_of(found, "zsre"), wanted) == pytest.approx(wanted, abs=1e-6)
