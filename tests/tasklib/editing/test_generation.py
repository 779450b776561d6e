"""`edithurt_counterfact_generation`: texts against a plain loop, figures against hand-made and released ones.

And what is said where something lacks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from lm_eval_edit import ConfigurationError, EditedHFLM, UserError, demo, load_facts
from lm_eval_edit.harness import sampled
from lm_eval_edit.tasklib.editing import documents, generation_inputs, snippets, texts
from tests.support.harness_runs import evaluate
from tests.support.harness_runs import figures as figures_of
from tests.support.reference_texts import ENTRIES, made

pytest.importorskip("nltk")
pytest.importorskip("sklearn")

TASK = "edithurt_counterfact_generation"
UNTRAINED = texts.word_tokenizer(texts.UNTRAINED)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Facts whose generation prompts have different lengths, two of them the same; reference texts for all but one."""
    folder = tmp_path_factory.mktemp("inputs")
    facts = [
        {
            "id": f"f{number}",
            "subject": subject,
            "prompt": "{} lives in",
            "target_new": city,
            "target_new_id": f"Q{number}",
            "relation": "P551",
            "generation_prompts": ["{} is", "The friends of {} say that in the evening", "{} is"],
        }
        for number, (subject, city) in enumerate([("Nils Albrecht", "Oslo"), ("Mara", "Rome"), ("Ann Ku", "Bern")])
    ]
    entries = [
        {
            "relation_id": "P551",
            "target_id": f"Q{number}",
            "samples": [
                {"name": "Someone", "text": f"Someone is in the city {city}."},
                {"text": f"They say {city} is."},
            ],
        }
        for number, city in enumerate(("Oslo", "Rome"))
    ]
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "snippets.json").write_text(json.dumps(entries))
    return {
        "edit_dataset": str(folder / "facts.json"),
        "n_edits": 3,
        "snippets": str(folder / "snippets.json"),
        "word_tokenizer": texts.UNTRAINED,
        "text_tokens": 40,
    }


def run(lm, inputs, **more):
    return evaluate(lm, inputs | more, [TASK])


def written(results):
    """Fact -> what the model said after each of its prompts."""
    return {sample["doc"]["fact_id"]: [r[2] for r in sample["filtered_resps"]] for sample in results["samples"][TASK]}


# ---------------------------------------------------------------------------------------------------------- the texts


def plainly(model, tokenizer, prompt, how):
    """One token after another, each prompt alone: no batch, no padding, no cache."""
    ids = tokenizer(prompt)["input_ids"]
    start, generator = len(ids), torch.Generator().manual_seed(how["seed"])
    while len(ids) < start + how["max_gen_toks"]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        shares = logits.softmax(dim=0)
        best = sorted(range(len(shares)), key=lambda token: -shares[token])[:5]
        left = float(torch.rand(1, generator=generator, dtype=torch.float64)) * float(sum(shares[best]))
        for token in best:
            left -= float(shares[token])
            if left <= 0:
                break
        ids = [*ids, token]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    return whole[len(tokenizer.decode(ids[:start], skip_special_tokens=True)) :]


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
def test_texts_and_figures_are_those_of_a_plain_computation(reference, inputs, name):
    path = str(reference / "models" / name)
    lm = HFLM(path, device="cpu", batch_size=2)
    # What a checkpoint wishes for generation is not what the protocol asks for.
    lm.model.generation_config.repetition_penalty = 5.0
    results = run(lm, inputs, pretrained=path)
    assert lm.model.generation_config.repetition_penalty == 5.0
    found = snippets.read_snippets(inputs["snippets"])
    for sample in results["samples"][TASK]:
        wanted = []
        for (_, _, said), (prompt, how) in zip(
            sample["filtered_resps"], (arguments.values() for arguments in arguments_of(sample)), strict=True
        ):
            assert how["max_gen_toks"] == 40 - len(lm.tokenizer(prompt)["input_ids"])
            assert said == plainly(lm.model, lm.tokenizer, prompt, how)
            wanted.append(unicodedata.normalize("NFKD", prompt + said).replace("\n\n", " "))
        assert len(set(wanted)) == 3, "the same prompt twice gives two texts"
        assert sample["fluency"] == sample["score"] == pytest.approx(texts.fluency(wanted, UNTRAINED))
        reference_text = found.joined("P551", sample["doc"]["object"])
        if sample["doc"]["fact_id"] == "f2":
            assert reference_text is None and sample["consistency"] is None
        else:
            assert sample["consistency"] == pytest.approx(texts.consistency(wanted, reference_text, found.vectorizer))
    figures = figures_of(results, TASK.removeprefix("edithurt_"))
    assert figures.keys() == {"score", "fluency", "consistency"} and figures["fluency"] > 0
    assert isinstance(results["results"][TASK]["fluency_stderr,none"], float)
    provenance = results["configs"][TASK]["metadata"]["provenance"]
    assert provenance["word_tokenizer"] == texts.UNTRAINED and provenance["sampling_seed"] == 0
    assert provenance["weights_of_words"] == "fitted on the snippets" and provenance["snippets_sha256"]


def arguments_of(sample):
    """(prompt, how) of each request, as dictionaries in the samples or as pairs in memory."""
    for arguments in sample["arguments"]:
        yield dict(enumerate(arguments)) if isinstance(arguments, tuple | list) else arguments


def test_texts_depend_on_nothing_else_of_a_run(reference, inputs):
    path = str(reference / "models" / "gpt2-tiny")
    options = inputs | {"pretrained": path}
    first = written(run(HFLM(path, device="cpu", batch_size=1), options))
    other_batches = written(run(HFLM(path, device="cpu", batch_size=7), options))
    other_order = written(run(HFLM(path, device="cpu", batch_size=4), options | {"edit_seed": 3}))
    fewer = written(run(HFLM(path, device="cpu", batch_size=4), options, n_edits=1))
    unedited = options | {"editor": "none"}
    chosen = {name: unedited[name] for name in ("pretrained", "edit_dataset", "n_edits", "snippets")}
    ours = written(run(EditedHFLM(**chosen, device="cpu"), unedited))
    assert first == other_batches == other_order == ours
    assert list(first) != list(other_order) and fewer.items() <= first.items() and len(fewer) == 1
    again = written(run(HFLM(path, device="cpu", batch_size=1), options, sampling_seed=1))
    assert all(again[fact] != first[fact] for fact in first)


def test_a_checkpoint_that_ends_its_texts_is_asked_to_go_on(reference):
    """The released loop knows no end of text; where a request wants one, it is heeded."""
    lm = HFLM(str(reference / "models" / "gpt2-tiny"), device="cpu")
    asked = [
        _Request(("Nils", {"do_sample": True, "seed": seed, "top_k": 5, "max_gen_toks": 30, **more}))
        for seed in range(3)
        for more in ({"ignore_eos": True}, {}, {"until": [" "]})
    ]
    said = sampled.answered(lm, asked, lambda others: [])
    lm.model.generation_config.eos_token_id = list(range(lm.vocab_size))
    assert sampled.answered(lm, asked, lambda others: []) == said
    assert all(len(whole) > len(stopped) for whole, stopped in zip(said[0::3], said[2::3], strict=True))
    assert all(whole.startswith(stopped) for whole, stopped in zip(said[0::3], said[2::3], strict=True))
    end = lm.tokenizer.encode(said[0], add_special_tokens=False)[3]
    lm.tokenizer.eos_token_id = end
    ended = sampled.answered(lm, asked[1:2], lambda others: [])
    assert said[0].startswith(ended[0]) and len(ended[0]) < len(said[0])


class _Request:
    task_name = doc_id = None

    def __init__(self, args):
        self.args = args


def test_tokens_are_drawn_out_of_the_k_likeliest_by_their_probability():
    scores = torch.tensor([0.0, 3.0, 2.0, -5.0, 1.0]).log_softmax(dim=0)
    generator = torch.Generator().manual_seed(1)
    counts = np.bincount([sampled.drawn(scores, 3, 1.0, generator) for _ in range(3000)], minlength=5) / 3000
    wanted = np.exp([-np.inf, 3, 2, -np.inf, 1])
    assert np.abs(counts - wanted / wanted.sum()).max() < 0.03 and counts[0] == counts[3] == 0


def test_other_model_types_get_the_seed(reference, inputs, monkeypatch):
    """A model that is asked in text: its tokenizer says how long a prompt is, without one the run stops."""
    path = str(reference / "models" / "gpt2-tiny")
    monkeypatch.setattr("lm_eval_edit.harness.exact_requests.answers_tokens", lambda lm: False)
    asked = []

    class Elsewhere(HFLM):
        def generate_until(self, requests, disable_tqdm=False):
            asked.extend(request.args for request in requests)
            return [" a text of words"] * len(requests)

    run(Elsewhere(path, device="cpu"), inputs, pretrained=path)
    ways = [how for _, how in asked]
    assert all(how.keys() == {"until", "do_sample", "temperature", "top_k", "max_gen_toks", "seed"} for how in ways)
    assert len({how["seed"] for how in ways}) == 9 and all(how["max_gen_toks"] < 40 for how in ways)
    with pytest.raises(UserError, match="how many tokens a prompt has is not known"):
        run(Elsewhere(path, device="cpu"), inputs, model="an-api")


# ------------------------------------------------------------------------------- what lacks, before any model is loaded


def problems_of(metadata):
    with pytest.raises(ConfigurationError) as caught:
        documents.check_tasks([TASK], metadata)
    return caught.value.problems


def test_facts_without_generation_prompts(tmp_path):
    made(tmp_path, [{"id": "0", "subject": "Abo", "prompt": "{} is", "target_new": "b"}], "facts.json")
    (problem,) = problems_of({"edit_dataset": str(tmp_path / "facts.json")})
    assert problem.startswith(f"{TASK}: none of the 1 facts") and "has a generation prompt" in problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"a": 1}', "holds a dict; give a list"),
        ("[]", "holds no texts"),
        ('[{"relation_id": "P", "target_id": 3, "samples": []}]', "entry 1: target_id should be text; got 3"),
        (
            '[{"relation_id": "P", "target_id": "Q", "samples": ["x"]}, 4]',
            "should hold objects with a \"text\"; got 'x'",
        ),
    ],
)
def test_files_of_no_reference_texts(tmp_path, inputs, content, message):
    (tmp_path / "s.json").write_text(content)
    problems = problems_of(inputs | {"snippets": str(tmp_path / "s.json")})
    assert any(message in problem for problem in problems), problems


def test_every_problem_at_once(tmp_path, inputs, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    strange = made(tmp_path, ENTRIES)
    problems = problems_of(inputs | {"snippets": str(strange), "word_tokenizer": "punkt"})
    assert len(problems) == 2 and "punkt_tab" in problems[0]
    assert "has no texts for any of the 3 facts" in problems[1] and "'P551'" in problems[1] and "'Q" in problems[1]
    (problem,) = problems_of(inputs | {"snippets": str(tmp_path / "none.json")})
    assert "no such file" in problem
    (problem,) = problems_of(inputs | {"sampling_seed": "x"})
    assert problem == "sampling_seed=x: want a whole number of at least 0"


def test_without_the_extra(inputs, monkeypatch):
    found = texts.importlib.util.find_spec
    monkeypatch.setattr(texts.importlib.util, "find_spec", lambda name: None if name == "nltk" else found(name))
    (problem,) = problems_of(inputs)
    assert "needs nltk, not installed" in problem and "lm-eval-edit[generation]" in problem


def test_a_prompt_that_leaves_no_room_for_a_text(reference, inputs):
    path = str(reference / "models" / "gpt2-tiny")
    with pytest.raises(UserError, match=r"of fact f\d has \d+ tokens, and a text has 5 with it"):
        run(HFLM(path, device="cpu"), inputs, pretrained=path, text_tokens=5)


def test_what_does_not_fit_is_told_before_the_model_loads(reference, inputs):
    path = str(reference / "models" / "gpt2-tiny")
    (problem,) = problems_of(inputs | {"pretrained": path, "text_tokens": 5})
    assert "tokens, and a text has 5 with it: shorten it" in problem
    (problem,) = problems_of(inputs | {"pretrained": path, "max_length": 30})
    assert problem.endswith("context holds 30 tokens; give --metadata text_tokens=N with N up to 30")
    documents.check_tasks([TASK], inputs | {"pretrained": path})


def test_nothing_stands_around_one_of_its_prompts(inputs):
    lm = EditedHFLM(device="cpu")
    with pytest.raises(UserError, match=f"{TASK} asks as the published scripts do"):
        evaluate(lm, inputs | {"pretrained": "demo", "editor": "none"}, [TASK], system_instruction="Be brief.")


def test_without_reference_texts_there_is_no_consistency(reference, inputs, caplog):
    path = str(reference / "models" / "gpt2-tiny")
    bare = {name: value for name, value in inputs.items() if name != "snippets"}
    results = run(HFLM(path, device="cpu"), bare, pretrained=path)
    assert figures_of(results, TASK.removeprefix("edithurt_")).keys() == {"score", "fluency"}
    assert "no reference texts (snippets=FILE), so consistency is not measured" in caplog.text


# ----------------------------------------------------------------------------------------------------------- the facts


def test_counterfacts_records(data):
    facts = load_facts(str(data / "counterfact.jsonl"))
    with open(data / "counterfact.jsonl", encoding="utf-8") as lines:
        record = json.loads(next(lines))
    fact = facts[0]
    assert fact.generation_prompts == tuple(record["generation_prompts"]) and len(fact.generation_prompts) == 10
    assert fact.target_new_id == record["requested_rewrite"]["target_new"]["id"] and fact.relation.startswith("P")
    (doc,) = documents.generation(fact, 0)
    assert (doc["relation"], doc["object"]) == (fact.relation, fact.target_new_id) and doc["prompt"] == doc["prompts"][
        0
    ]


def test_what_is_written_freely_is_no_part_of_an_edit():
    """A ledger that was made before these fields were read fits its facts still."""
    fact = load_facts("demo")[0]
    assert "generation_prompts" in fact.record() and "generation_prompts" not in fact.identity()


def test_the_demo_has_reference_texts_for_every_fact():
    found = snippets.read_snippets(demo.SNIPPETS)
    facts = load_facts("demo")
    docs = [doc for fact in facts for doc in documents.generation(fact, 0)]
    assert len(docs) == len(facts)
    assert all(found.joined(doc["relation"], doc["object"]) for doc in docs)
    assert all(doc["object"] in found.joined(doc["relation"], doc["object"]) for doc in docs)
    assert generation_inputs.problems({}, "demo", docs) == []


# --------------------------------------------------------------------------------- the released code, run beside ours


def test_the_released_functions_give_the_same(tmp_path, monkeypatch):
    path = os.environ.get("MEMIT_PATH")
    if not path:
        pytest.skip("MEMIT_PATH names no clone of kmeng01/memit")
    import nltk

    source = subprocess.run(
        ["git", "-C", path, "show", "HEAD:experiments/py/eval_utils_counterfact.py"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    kept = "\n".join(line for line in source.splitlines() if not line.startswith(("from dsets", "from util")))
    released = {"AttributeSnippets": object, "__name__": "released"}
    exec(compile(re.sub(r"\.A\n", ".toarray()\n", kept), "eval_utils_counterfact", "exec"), released)
    monkeypatch.setattr(nltk, "word_tokenize", UNTRAINED)
    said = [
        "Nils Albrecht lives in London, and so on. He left; the city of London (in the rain) is the city of London.",
        "They're born in Paris! Paris, 1998. A town in a town",
    ]
    assert texts.fluency(said, UNTRAINED) == pytest.approx(released["n_gram_entropy"](said), abs=1e-12)
    found = snippets.read_snippets(made(Path(tmp_path), ENTRIES))
    joined = found.joined("P19", "Q90")
    theirs = released["tfidf_similarity"](" ".join(said), joined, found.vectorizer)
    assert texts.consistency(said, joined, found.vectorizer) == pytest.approx(theirs, abs=1e-12)
