"""`edithurt_suite_mc`: what is asked, what is counted, and that figures are those of a plain computation."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys

import pytest
import torch

from lm_eval_edit.demo import CHECKPOINT
from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.suite import prompts, sources
from lm_eval_edit.tasklib.suite.catalogue import BY_LIKELIHOOD, TASKS
from lm_eval_edit.tasklib.suite.likelihood import QUESTIONS, Response, dataset, of_answer, of_choices, of_texts
from tests.support.harness_runs import evaluate
from tests.support.suite_records import RECORDS

pytestmark = pytest.mark.libraries

from lm_eval.api.model import LM  # noqa: E402

NAMES = {task: f"edithurt_{task}_mc" for task in QUESTIONS}
WORDS = {"rte": ["True", "False"], "boolq": ["yes", "no"], "sst2": ["positive", "negative"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dozen copies of a made-up record for each task."""
    found = tmp_path_factory.mktemp("data")
    for task, record in RECORDS.items():
        (found / f"{TASKS[task].stem}.jsonl").write_text((json.dumps(record) + "\n") * 12)
    return found


def documents(task, folder):
    return dataset(task, model="an-api", data_dir=str(folder))["test"]


# ------------------------------------------------------------------------------------------------------ what is asked


@pytest.mark.parametrize("task", QUESTIONS)
def test_documents_hold_what_is_asked(task, folder):
    doc = documents(task, folder)[0]
    if task in WORDS:
        assert doc["prompt"] == getattr(prompts, task)(doc) and doc["choices"] == WORDS[task]
        assert doc["choices"][doc["gold"]] == getattr(prompts, f"{task}_target")(doc)
    elif task == "mutual":
        assert (doc["prompt"], doc["choices"], doc["gold"]) == (
            "m : hi .",
            ["f : a .", "f : b .", "f : c .", "f : d ."],
            2,
        )
    else:
        assert (doc["choices"], doc["gold"]) == (
            [{"nq": "Bob", "gsm8k": "1,003", "samsum": "They greet."}[task]], 0
        )  # fmt: skip
        assert doc["prompt"] == getattr(prompts, task)(doc) + (" Answer:" if task == "nq" else "")


def test_nq_without_a_passage_is_the_suites_closed_book_prompt(tmp_path):
    (tmp_path / "nq_open.jsonl").write_text(json.dumps({"question": "who wrote it", "answer": ["Bob"]}) + "\n")
    assert documents("nq", tmp_path)[0]["prompt"] == "Question: who wrote it Answer:"


def test_an_empty_answer_is_refused(tmp_path):
    (tmp_path / "samsum.jsonl").write_text(json.dumps({"dialogue": "A: Hi", "summary": " "}) + "\n")
    with pytest.raises(UserError, match="samsum: document 0 of folder:jsonl has an empty answer"):
        documents("samsum", tmp_path)


def test_prompt_and_longest_answer_fit_together(tmp_path):
    record = {"dialogue": "A: hello there\n" * 200, "summary": "They greet each other again and again."}
    (tmp_path / "samsum.jsonl").write_text(json.dumps(record) + "\n")
    doc = dataset("samsum", pretrained="demo", data_dir=str(tmp_path), max_length=64)["test"][0]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    length = len(tokenizer.encode(f"{doc['prompt']} {doc['choices'][0]}"))
    assert doc["shortened"] and doc["prompt"].endswith("\nTL;DR:") and 56 < length <= 64


def test_missing_data_are_named_before_anything_is_loaded(tmp_path):
    (tmp_path / "rte.jsonl").write_text(json.dumps(RECORDS["rte"]) + "\n")
    sources.check_tasks(["edithurt_rte_mc"], {"data_dir": str(tmp_path)})
    with pytest.raises(UserError) as raised:
        sources.check_tasks([BY_LIKELIHOOD], {"data_dir": str(tmp_path)})
    text = str(raised.value)
    assert "nq_open.jsonl" in text and "samsum.jsonl" in text
    assert "conll2003" not in text and "no data for rte" not in text


# ---------------------------------------------------------------------------------------------------- what is counted


def test_accuracies_and_the_gold_answers_log_probability():
    doc = {"choices": ["a", "bbbb"], "gold": 1, "shortened": False}
    answers = [Response((-2.0, False), 1), Response((-4.0, False), 2)]
    found = of_choices(doc, answers)
    assert found == {"score": 0, "acc": 0, "acc_norm": 1, "gold_logprob": -2.0, "shortened": 0}
    assert of_texts(doc, answers)["score"] == 1
    one = of_answer({"choices": ["x y"], "gold": 0, "shortened": True}, [Response((-3.0, True), 2)])
    assert one == {"score": pytest.approx(math.exp(-1.5)), "em": 1, "gold_logprob": -1.5, "shortened": 1}


def test_figures_that_are_no_numbers_choose_nothing():
    doc = {"choices": ["a", "b"], "gold": 0, "shortened": False}
    found = of_choices(doc, [Response((math.nan, False), 1), Response((math.nan, False), 1)])
    assert found["score"] == found["acc_norm"] == 0 and math.isnan(found["gold_logprob"])
    one = of_answer(doc | {"choices": ["a"]}, [Response((math.nan, False), 2)])
    assert one["score"] == one["em"] == 0 and math.isnan(one["gold_logprob"]), "from 0 to 1, whatever the model"


def test_a_response_stays_whole_wherever_it_is_sent():
    response = Response((-1.5, True), 3)
    for other in (copy.deepcopy(response), pickle.loads(pickle.dumps(response))):
        assert other == (-1.5, True) and other.tokens == 3
    assert json.dumps(response) == "[-1.5, true]"  # as the harness logs any other choice


class Knowing(LM):
    """Gives the gold answers a log-probability and all others another one; tells nothing of tokens."""

    def __init__(self, gold: float, others: float, folder):
        super().__init__()
        self.figures = gold, others
        docs = (doc for task in QUESTIONS for doc in documents(task, folder))
        self.golds = {(doc["prompt"], f" {doc['choices'][doc['gold']]}") for doc in docs}

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(self.figures[request.args not in self.golds], request.args in self.golds) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        raise NotImplementedError


def run(lm, folder, **metadata):
    found = evaluate(lm, {"model": "an-api", "data_dir": str(folder)} | metadata, [BY_LIKELIHOOD])
    return found["results"]


def test_a_perfect_model_scores_one_and_one_that_is_never_right_nothing(folder):
    perfect = run(Knowing(0.0, -5.0, folder), folder, tokenizer=str(CHECKPOINT))
    assert all(perfect[name]["score,none"] == 1 and perfect[name]["gold_logprob,none"] == 0 for name in NAMES.values())
    assert all(perfect[NAMES[task]]["em,none"] == 1 for task in ("nq", "gsm8k", "samsum"))
    assert (perfect[BY_LIKELIHOOD]["score,none"], perfect[BY_LIKELIHOOD]["gold_logprob,none"]) == (1, 0)
    wrong = run(Knowing(-60.0, -1.0, folder), folder, tokenizer=str(CHECKPOINT))
    assert all(wrong[NAMES[task]]["acc,none"] == 0 for task in (*WORDS, "mutual"))
    # By the tokenizer that was named: `1,003` is several tokens, `They greet.` too.
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    for task, answer in {"gsm8k": " 1,003", "samsum": " They greet.", "nq": " Bob"}.items():
        assert wrong[NAMES[task]]["gold_logprob,none"] == pytest.approx(-60 / len(tokenizer.encode(answer)))


def test_a_model_that_tells_no_tokens_needs_a_tokenizer(folder):
    with pytest.raises(UserError, match="tells no tokens: name its tokenizer"):
        run(Knowing(0.0, -5.0, folder), folder)


def plain_loop(model, tokenizer, prompt, answer):
    """(sum of log-probabilities, number of tokens, whether all are the likeliest), by nothing of the harness."""
    before, whole = (tokenizer(text, return_tensors="pt").input_ids for text in (prompt, f"{prompt} {answer}"))
    with torch.no_grad():
        logs = model(whole).logits[0, :-1].double().log_softmax(-1)
    start, target = before.shape[1], whole[0, 1:]
    own = logs[range(len(target)), target][start - 1 :]
    return float(own.sum()), len(own), bool((logs.argmax(-1) == target)[start - 1 :].all())


@pytest.mark.parametrize("kind", ["hf", "edited_hf"])
def test_figures_equal_a_plain_loop(kind):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lm_eval_edit import EditedHFLM

    lm = (
        HFLM(str(CHECKPOINT), device="cpu")
        if kind == "hf"
        else EditedHFLM(pretrained="demo", editor="none", device="cpu")
    )
    found = evaluate(lm, {"pretrained": "demo"}, [BY_LIKELIHOOD], limit=5)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(CHECKPOINT).eval(),
        AutoTokenizer.from_pretrained(CHECKPOINT),
    )
    for task, name in NAMES.items():
        for sample in found["samples"][name]:
            doc = sample["doc"]
            figures = [plain_loop(model, tokenizer, doc["prompt"], choice) for choice in doc["choices"]]
            total, count, greedy = figures[doc["gold"]]
            assert sample["gold_logprob"] == pytest.approx(total / count, abs=1e-4), (task, doc)
            if task in (*WORDS, "mutual"):
                sums = [each[0] for each in figures]
                assert sample["acc"] == (max(sums) == total)
                lengths = [each / len(choice) for each, choice in zip(sums, doc["choices"], strict=True)]
                assert sample["acc_norm"] == (max(lengths) == lengths[doc["gold"]])
            else:
                assert sample["score"] == pytest.approx(math.exp(total / count), abs=1e-4) and sample["em"] == greedy
    config = found["configs"]["edithurt_sst2_mc"]
    assert config["metadata"]["chance"] == 0.5 and config["metadata"]["provenance"]["source"] == "demo"


# ---------------------------------------------------------------------------------------------------- as a whole


@pytest.mark.slow
def test_stock_commands_two_processes_and_compare(tmp_path):
    """hf and edited_hf by the console script give one figure; so do two processes; compare pairs them."""
    from tests.support.console_scripts import lm_eval, results_of

    tasks = ["--tasks", f"{BY_LIKELIHOOD},edithurt_perplexity", "--limit", "6", "--log_samples"]
    ours = ["--model", "edited_hf", "--model_args", "editor=none", *tasks]
    lm_eval("--model", "hf", "--model_args", f"pretrained={CHECKPOINT}", *tasks, "--output_path", "hf", cwd=tmp_path)
    lm_eval(*ours, "--output_path", "one", cwd=tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "lm_eval"]
    done = subprocess.run([*launch, *ours, "--output_path", "two"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [results_of(tmp_path / name)["results"] for name in ("hf", "one", "two")]
    for task in (*NAMES.values(), "edithurt_perplexity"):
        for metric in ("score,none", "gold_logprob,none", "bits_per_byte,none", "word_perplexity,none"):
            if metric in found[0][task]:
                assert found[1][task][metric] == pytest.approx(found[0][task][metric], rel=1e-5)
                assert found[2][task][metric] == pytest.approx(found[0][task][metric], rel=1e-5)
    told = lm_eval("compare", "hf", "one", "--format", "json", program="lm-eval-edit", cwd=tmp_path).stdout
    rows = json.loads(told)["comparisons"][0]["rows"]
    assert {row["task"] for row in rows} == {*NAMES.values(), "edithurt_perplexity"}
    assert all(row["verdict"] in ("no regression", "inconclusive") for row in rows)
