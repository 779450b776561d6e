"""The tasks inside the harness: YAML, requests, whole runs with models of any type, and what the results hold."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from sklearn.metrics import f1_score

from lm_eval_edit import demo
from lm_eval_edit.harness.our_tasks import tasks_dir
from lm_eval_edit.tasklib.glue import prompts, sources
from lm_eval_edit.tasklib.glue.catalogue import GROUP, GROUPED, NEW_TOKENS, TASKS
from tests.support.glue_records import write_all
from tests.support.harness_runs import evaluate

pytestmark = pytest.mark.libraries

NAMES = [f"edithurt_glue_{task}" for task in TASKS]
ALL = [GROUP, "edithurt_glue_dialogue", "edithurt_glue_sentiment"]
METRICS = ("score", "script", "f1_new", "mcc", "valid")
GROUPED_NAMES = [f"edithurt_glue_{task}" for task in GROUPED]


class Knowing(LM):
    """A model that is no transformer: it knows what to say to each prompt.

    Args:
        answers: Prompt -> word.
        end: What it says after a word.
    """

    def __init__(self, answers: dict[str, str], end: str = "\n"):
        super().__init__()
        self.answers, self.end = answers, end

    def generate_until(self, requests, disable_tqdm=False):
        return [f" {self.answers[request.args[0]]}{self.end}" for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        right = [self.answers[request.args[0]] == request.args[1].strip() for request in requests]
        return [(-1.0 if yes else -5.0, yes) for yes in right]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def perfect(folder):
    """The answers of a model that is always right."""
    loaded = [sources.load(task, {"model": "an-api", "data_dir": str(folder)})[0] for task in TASKS]
    return {getattr(prompts, doc["task"])(doc): prompts.target(doc) for docs in loaded for doc in docs}


@pytest.fixture(scope="module")
def results(perfect, folder):
    metadata = {"model": "an-api", "tokenizer": str(demo.CHECKPOINT), "data_dir": str(folder)}
    return evaluate(Knowing(perfect), metadata, ALL)


def figure(results, task, metric):
    return results["results"][task][f"{metric},none"]


def test_a_perfect_model_and_the_trap(results):
    """Right everywhere by `score`; by the published script everywhere but in RTE, whose labels are inverted."""
    for name in NAMES:
        wanted = 0.0 if name == "edithurt_glue_rte" else 1.0
        assert figure(results, name, "score") == figure(results, name, "valid") == 1.0
        assert figure(results, name, "script") == figure(results, name, "f1_new") == wanted
        assert figure(results, name, "mcc") == (-1.0 if name == "edithurt_glue_rte" else 1.0)
        counts = [figure(results, name, count) for count in ("correct", "incorrect", "invalid")]
        assert counts == [100 * wanted, 100 - 100 * wanted, 0]


def test_the_group(results):
    assert sorted(results["group_subtasks"][GROUP]) == sorted(GROUPED_NAMES)
    for metric in METRICS:
        values = [figure(results, name, metric) for name in GROUPED_NAMES]
        errors = [results["results"][name][f"{metric}_stderr,none"] for name in GROUPED_NAMES]
        assert results["groups"][GROUP][f"{metric},none"] == pytest.approx(sum(values) / 6, abs=1e-12)
        assert results["groups"][GROUP][f"{metric}_stderr,none"] == pytest.approx(math.hypot(*errors) / 6, abs=1e-12)


def test_configuration(results):
    for name in NAMES:
        config = results["configs"][name]
        wanted = {"until": [], "do_sample": False, "max_gen_toks": NEW_TOKENS}
        assert config["generation_kwargs"] == wanted and config["num_fewshot"] == 0
        assert config["metadata"]["chance"] == 1 / len(TASKS[name.removeprefix("edithurt_glue_")].words)
        provenance = config["metadata"]["provenance"]
        assert provenance["items"] == "published" and provenance["documents"] == 100
        json.dumps(provenance)
        better = results["higher_is_better"][name]
        assert better["score"] is True
        assert [better[m] for m in ("script", "f1_new", "mcc")] == [None if name.endswith("_rte") else True] * 3


def test_requests(results):
    for name in NAMES:
        words = TASKS[name.removeprefix("edithurt_glue_")].words
        for sample in results["samples"][name]:
            prompt = getattr(prompts, sample["doc"]["task"])(sample["doc"])
            generation, *asked = sample["arguments"]
            assert generation == (prompt, {"until": [], "do_sample": False, "max_gen_toks": 5})
            assert asked == [(prompt, f" {word}") for word in words]


def test_a_bare_letter_counts_in_score_alone(perfect, folder):
    """A model that ends after its letter: the published script wants a line end behind it."""
    metadata = {"model": "an-api", "data_dir": str(folder)}
    results = evaluate(Knowing(perfect, end=""), metadata, ["edithurt_glue_mmlu"])
    assert figure(results, "edithurt_glue_mmlu", "score") == 1.0
    assert figure(results, "edithurt_glue_mmlu", "script") == 0.0


def test_without_a_tokenizer_there_is_no_f1_new(perfect, folder):
    """Nothing tells how many tokens a word has; the group leaves the metric out too."""
    results = evaluate(Knowing(perfect), {"model": "an-api", "data_dir": str(folder)}, [GROUP])
    for name in (*GROUPED_NAMES, GROUP):
        assert not [key for key in results["results"][name] if key.startswith("f1_new")]
        assert figure(results, name, "score") == 1.0


def test_items_of_the_run(perfect, folder):
    metadata = {"model": "an-api", "data_dir": str(folder), "items": "20"}
    results = evaluate(Knowing(perfect), metadata, ["edithurt_glue_rte"])
    assert [sample["doc"]["item"] for sample in results["samples"]["edithurt_glue_rte"]] == list(range(10, 30))


@pytest.fixture(scope="module")
def transformer():
    return HFLM(pretrained=str(demo.CHECKPOINT), device="cpu", batch_size=16)


@pytest.fixture(scope="module")
def demo_results(transformer):
    return evaluate(transformer, {"items": 16}, ALL)


def test_the_figures_are_those_of_the_logged_outputs(demo_results):
    """`script` recomputed from text and labels alone, by the published rule and scikit-learn."""
    found = {
        "sst": lambda text: 1 if "positive" in text else 0 if "negative" in text else -1,
        "cola": lambda text: 1 if "yes" in text else 0 if "no" in text else -1,
        "mrpc": lambda text: 1 if "yes" in text else 0 if "no" in text else -1,
        "rte": lambda text: 0 if "false" in text else 1 if "true" in text else -1,
        "nli": lambda text: 1 if "true" in text else 0 if "false" in text else -1,
    }
    for task, read in found.items():
        samples = demo_results["samples"][f"edithurt_glue_{task}"]
        mark = {"sst": "Sentiment :", "rte": "answer:", "nli": "True or False? Answer:"}.get(task, "Answer:")
        said = [read((s["arguments"][0][0] + s["resps"][0][0]).split(mark)[-1].lower()) for s in samples]
        gold = [s["doc"]["label"] for s in samples]
        expected = f1_score(gold, said, average="weighted", zero_division=0)
        assert figure(demo_results, f"edithurt_glue_{task}", "script") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("task", ["cola", "sst", "mmlu"])
def test_f1_new_is_that_of_a_plain_loop(task, demo_results, transformer):
    """Whole texts through the model, positions counted from the prompt's own tokens, as the published scripts do."""
    model, tokenizer = transformer.model, transformer.tokenizer
    words = TASKS[task].words
    samples = demo_results["samples"][f"edithurt_glue_{task}"]
    chosen = []
    for sample in samples:
        prompt = sample["arguments"][0][0]
        start, means = len(tokenizer(prompt).input_ids), []
        for word in words:
            tokens = tokenizer(f" {word}").input_ids
            ids = tokenizer(f"{prompt} {word}", return_tensors="pt").input_ids
            with torch.no_grad():
                logits = model(ids).logits[0].log_softmax(-1)
            means.append(sum(float(logits[start + j - 1, token]) for j, token in enumerate(tokens)) / len(tokens))
        chosen.append(int(means[1] > means[0]) if len(words) == 2 else means.index(max(means)))
        for label, mean in enumerate(means):
            own = [response for response in sample["filtered_resps"][1:] if response[0] == label]
            assert sum(response[2] for response in own) / len(own) == pytest.approx(mean, abs=1e-4)
    gold = [sample["doc"]["label"] for sample in samples]
    expected = f1_score(gold, chosen, average="weighted", zero_division=0)
    assert figure(demo_results, f"edithurt_glue_{task}", "f1_new") == pytest.approx(expected, abs=1e-12)


def test_the_demo_model_is_asked_what_it_knows(demo_results):
    """Two of the prompts are near those it was trained for; the others are there to be run."""
    assert figure(demo_results, "edithurt_glue_nli", "score") > 0.8
    assert figure(demo_results, "edithurt_glue_sentiment", "score") > 0.8


def test_predict_only(perfect, folder):
    metadata = {"model": "an-api", "data_dir": str(folder)}
    results = evaluate(Knowing(perfect), metadata, ["edithurt_glue_sst"], predict_only=True, log_samples=True)
    assert len(results["samples"]["edithurt_glue_sst"]) == 100


def test_behind_a_chat_template_the_words_begin_the_turn(perfect, folder):
    class Chatting(Knowing):
        tokenizer_name = "chat"

        def chat_template(self, chat_template=False):
            return "template"

        def apply_chat_template(self, history, add_generation_prompt=True):
            return "".join(turn["content"] for turn in history)

    metadata = {"model": "an-api", "data_dir": str(folder)}
    results = evaluate(Chatting(perfect), metadata, ["edithurt_glue_sst"], apply_chat_template=True)
    assert figure(results, "edithurt_glue_sst", "score") == 1.0
    _, *asked = results["samples"]["edithurt_glue_sst"][0]["arguments"]
    assert [text for _, text in asked] == ["negative", "positive"]


def test_the_folder_holds_yaml_and_notes_only():
    assert {path.suffix for path in (tasks_dir() / GROUP).iterdir()} <= {".yaml", ".md", ""}
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    assert set(manager.match_tasks(["edithurt_glue*"])) == {GROUP, *NAMES}
