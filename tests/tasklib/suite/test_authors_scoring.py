"""`script` against the released scripts: on real outputs of real runs, decoded as those scripts decode them.

`authors_functions` is a second writing of what the scripts count. Where a clone of their repository is at hand
(`MODEL_EDITING_HURT=<folder>`), the scripts themselves run too, on the same outputs.
"""

from __future__ import annotations

import copy
import json
import os
import pickle

import pytest

from lm_eval_edit.harness.outputs import BY_COUNT, END_OF_TEXT, EXACT, UNKNOWN, Output, by_count
from lm_eval_edit.tasklib.suite import aggregate, scoring
from lm_eval_edit.tasklib.suite.catalogue import TASKS
from lm_eval_edit.tasklib.suite.prompts import ENTITY_NAMES
from tests.conftest import ROOT
from tests.support import authors_functions, authors_scripts
from tests.support.suite_records import sample_of

DOCUMENTS = 40  # of a task


def script_of(task, doc, output):
    """(right, counted) of one document, as `scoring` has it."""
    value = getattr(scoring, task)(doc, [output])["script"]
    return tuple(value[2:]) if task == "conll2003" else (value, 1)


def same(task, ours, theirs):
    if task == "conll2003":
        return ours == tuple(theirs)
    return ours[0] == pytest.approx(theirs[0] / theirs[1], abs=1e-12)


# ------------------------------------------------------------------------------------------------- made-up outputs

DOCS = {
    "gsm8k": {"hint": "2 + 1\n", "answer": "1,003"},
    "rte": {"entailment": False},
    "nq": {"answers": ["Paris", "the", "New York"]},
    "boolq": {"answer": False},
    "mutual": {"answer": "C"},
    "samsum": {"summary": "Ada is late. Bo waits for her."},
    "sst2": {"positive": True},
    "conll2003": {
        "sentence_id": 0,
        "entity_type": "ORG",
        "tokens": ["Ada", "left", "Acme", "and", "Bo", "Inc", "."],
        "tags": ["B-PER", "O", "B-ORG", "O", "B-ORG", "I-ORG", "O"],
    },
}
SAID = {
    "gsm8k": [" 1,003", " 1003", " 11,0034"],
    "rte": [" True", " false", " FALSEhood", " True or False", " answer: false"],
    "nq": [" Paris", " in Paris!", " Answer: London", " Paris Answer: Rome", " of the\n", " New\nYork", " ...", " the"],
    "boolq": [" no", " No", "no", " not", " yes", " know", "\nno", " yes and no"],
    "mutual": [" C", " Chi", " (C)", " ABCD", " c", " the answer is B"],
    "samsum": [" Ada is late.", " ada", " Ada is late. DR: Bo waits", " Bo waits for her, Bo waits for her, Bo"],
    "sst2": [" positive", " POSITIVELY", " negative", " negative positive", " neutral"],
    "conll2003": [" Acme", " Acme, Bo Inc", " Bo", " Entity: Acme", " acme"],
}


@pytest.mark.parametrize("end", [END_OF_TEXT, "</s>", "<|im_end|>"])
@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_made_up_outputs(task, edited, end):
    """Ended and not, at once and later, with ends of text of other lengths than GPT-2's."""
    doc = DOCS[task] | {"shortened": False}
    for text in ["", " x", *SAID[task], " no \n\n Ada" * 9]:
        for ended in (True, False) if text else (True,):
            whole = text + end * ended
            ours = script_of(task, doc, Output(text, whole, ended, EXACT, edited))
            assert same(task, ours, authors_functions.of(task, doc, whole, edited)), (text, ended)


def test_ends_that_are_no_end():
    """What an output that ended must not become: a match, a summary without its last words, a reward for silence."""
    doc = {"answers": ["Paris"], "summary": "Ada is late.", "shortened": False}
    paris = Output(" Paris", " Paris<|endoftext|>", True, EXACT, False)
    assert script_of("nq", doc, paris) == (0, 1) and scoring.nq(doc, [paris])["score"] == 1
    late = " Ada is late."
    assert script_of("samsum", doc, Output(late, late + END_OF_TEXT, True, EXACT, False))[0] == pytest.approx(1)
    assert script_of("samsum", doc, Output(late, late, False, EXACT, False)) == (0, 1)
    # LLaMA's end of text is 4 characters long: 9 of the text go with it, ` Ada` is left. F ½, 0, ½.
    short = script_of("samsum", doc, Output(late, late + "</s>", True, EXACT, False))[0]
    assert short == pytest.approx(1 / 3, abs=1e-7)


def test_silence_names_nothing():
    """Every output ends at once: what the authors' functions give a model that says nothing."""
    doc = DOCS["conll2003"] | {"shortened": False}
    for said in ("", Output("", END_OF_TEXT, True, EXACT, False), Output("", "", False, EXACT, False)):
        rows = [scoring.conll2003({**doc, "entity_type": name}, [said])["script"] for name in ENTITY_NAMES]
        assert aggregate.entity_script(rows) == 0


def test_silence_over_the_papers_file(data):
    """The figure of `authors_scoring/ner_eos.json`: a single last word is an empty mention, which every text holds."""
    from lm_eval_edit.tasklib.suite import sources

    docs, _ = sources.load("conll2003", {"model": "an-api", "data_dir": str(data / "paper_layout")})
    assert len(docs) == 13_000
    assert aggregate.entity_script([scoring.conll2003(doc, [""])["script"] for doc in docs]) == pytest.approx(
        0.0091, abs=5e-5
    )


def case(name):
    path = ROOT.parent / "shared/cases/authors_scoring" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_cases_of_samsum():
    for each in case("samsum_script.json"):
        doc = {"summary": each["summary"], "shortened": False}
        assert script_of("samsum", doc, Output(each["output"], each["output"], False, EXACT, False))[
            0
        ] == pytest.approx(each["authors"], abs=1e-12)


def test_the_cases_of_rte(data):
    from lm_eval_edit.tasklib.suite import sources

    docs, _ = sources.load("rte", {"model": "an-api", "data_dir": str(data / "paper_layout")})
    for each in case("rte_quotes.json"):
        doc = docs[each["row"]]
        assert [doc["sentence1"], doc["sentence2"]] == each["authors"][1:3]


# ---------------------------------------------------------------------------------------------------- outputs, counted


class Words:
    """A tokenizer of which every word is a token."""

    eos_token = "</s>"

    def __call__(self, text, **options):
        return {"input_ids": text.split()}


def test_an_output_survives_copies_and_the_response_cache():
    output = Output("a", "a</s>", True, EXACT, True)
    for other in (pickle.loads(pickle.dumps(output)), copy.deepcopy(output), copy.copy(output)):
        assert type(other) is Output and other == "a" and vars(other) == vars(output)
    assert json.loads(json.dumps([output])) == ["a"]


def test_an_output_of_a_text_alone():
    """The harness calls the type of an output with a target: of other tasks too."""
    output = Output(12)
    assert output == "12" and (output.decoded, output.ended, output.known) == ("12", None, UNKNOWN)


@pytest.mark.parametrize(
    ("text", "new_tokens", "decoded", "ended", "known"),
    [
        ("a b", 3, "a b</s>", True, BY_COUNT),
        ("a b c", 3, "a b c", False, BY_COUNT),
        ("", 1, "</s>", True, BY_COUNT),
        ("a", None, "a", None, UNKNOWN),
        ("", None, END_OF_TEXT, None, UNKNOWN),
    ],
)
def test_by_count(text, new_tokens, decoded, ended, known):
    output = by_count(text, Words(), new_tokens, edited=False)
    assert (output, output.decoded, output.ended, output.known) == (text, decoded, ended, known)


def test_by_count_without_a_tokenizer():
    assert by_count("a", None, 3, edited=True).known == UNKNOWN


# --------------------------------------------------------------------------------------------------------- whole runs

# How the model is made to end: as it is, at the first token, after a few tokens.
ENDINGS = {
    "as it is": {},
    "at once": {"sequence_bias": lambda eos: [[[eos], 1e4]]},
    "soon": {"exponential_decay_length_penalty": lambda eos: (2, 3.0)},
}


@pytest.fixture(scope="session")
def folder(data, tmp_path_factory):
    return sample_of(data, tmp_path_factory.mktemp("sample"), DOCUMENTS)


def run(model, arguments, folder, limit=DOCUMENTS, **options):
    """The samples of the suite, one prompt at a time, as the scripts ask them."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    metadata = arguments | {"data_dir": str(folder)}
    manager = TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False, metadata=metadata)
    return simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["edithurt_suite"],
        task_manager=manager,
        limit=limit,
        batch_size=1,
        device="cpu",
        bootstrap_iters=0,
        **options,
    )


def generated(lm, prompt, new_tokens):
    """The text after the prompt as the scripts decode it: generated by transformers alone, all in one string."""
    batch = lm.tokenizer([prompt], return_tensors="pt")
    batch = {key: value[:, new_tokens - lm.max_length :] for key, value in batch.items()}  # the harness's cut, if any
    ids = lm.model.generate(**batch, max_new_tokens=new_tokens, do_sample=False, pad_token_id=lm.tokenizer.pad_token_id)
    before, whole = lm.tokenizer.decode(batch["input_ids"][0]), lm.tokenizer.decode(ids[0])
    assert whole.startswith(before)
    return whole[len(before) :]


def loaded(path, ending="as it is", **options):
    from lm_eval_edit.model import EditedHFLM

    lm = EditedHFLM(str(path), device="cpu", batch_size=1, **options)
    for name, value in ENDINGS[ending].items():
        setattr(lm.model.generation_config, name, value(lm.eot_token_id))
    return lm


def answered(lm, arguments, folder):
    """The run's results, and task -> [(logged sample, text as the scripts have it)]."""
    results = run(lm, arguments, folder)
    return results, {
        task: [
            (sample, generated(lm, sample["arguments"][0][0], TASKS[task].new_tokens))
            for sample in results["samples"][f"edithurt_{task}"]
        ]
        for task in TASKS
    }


def agree(answers, edited, ends=(END_OF_TEXT, "</s>")):
    """Every document's `script` is what the scripts count, and every output is known as it was."""
    for task, rows in answers.items():
        for sample, text in rows:
            ours = tuple(sample["script"][2:]) if task == "conll2003" else (sample["script"], 1)
            assert same(task, ours, authors_functions.of(task, sample["doc"], text, edited)), (task, text)
            output = sample["resps"][0][0]
            assert (output.known, output.decoded, output.edited) == (EXACT, text, edited)
            assert sample["ended"] == output.ended == text.endswith(ends)


CLONE = os.environ.get("MODEL_EDITING_HURT")


def agree_with_the_scripts(answers, edited, folder):
    """What the scripts themselves count, summed over the documents, is the sum of ours."""
    if not CLONE:
        return
    figures = {}
    for task, rows in answers.items():
        docs, texts = [sample["doc"] for sample, _ in rows], [text for _, text in rows]
        if task == "nq":  # one by one: a hit leaks into the next question
            theirs = [
                min(1, authors_scripts.counted(CLONE, task, [d], [t], edited, folder / f"nq{i}")["exact_match_count"])
                for i, (d, t) in enumerate(zip(docs, texts, strict=True))
            ]
            assert [sample["script"] for sample, _ in rows] == theirs
            figures[task] = sum(theirs) / len(rows)
            continue
        names = authors_scripts.counted(CLONE, task, docs, texts, edited, folder / task)
        if task == "conll2003":
            for name, short in (("PER", "per"), ("LOC", "loc"), ("ORG", "org"), ("MISC", "misc")):
                ours = [sum(s["script"][i] for s, _ in rows if s["script"][1] == name) for i in (2, 3)]
                assert ours == [names[f"count_{short}"], names[f"total_{short}"]]
            figures[task] = names.get("acc_total", "a type was never asked")
            continue
        wanted = {"gsm8k": "acc", "mutual": "accuracy", "samsum": "rouge_score_total"}.get(task, "total_accuracy")
        theirs = names.get(wanted, 0) / (len(rows) if task == "samsum" else 1)
        assert sum(sample["script"] for sample, _ in rows) / len(rows) == pytest.approx(theirs, abs=1e-12), task
        figures[task] = theirs
    print(json.dumps(figures))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
def test_script_is_the_authors(name, ending, reference, folder, tmp_path):
    path = reference / "models" / name
    results, answers = answered(loaded(path, ending), {"pretrained": str(path)}, folder)
    assert all(len(rows) == DOCUMENTS for rows in answers.values())
    agree(answers, edited=False)
    agree_with_the_scripts(answers, False, tmp_path)
    for task, rows in answers.items():
        assert results["configs"][f"edithurt_{task}"]["metadata"]["provenance"]["ended_known"] == EXACT
        share = results["results"][f"edithurt_{task}"]["ended,none"]
        assert share == sum(sample["ended"] for sample, _ in rows) / DOCUMENTS
        assert share == 1 or ending != "at once"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
def test_script_of_an_edited_model_is_the_authors(name, reference, data, folder, tmp_path):
    path = reference / "models" / name
    facts = {"editor": "ft", "n_edits": 1, "edit_dataset": str(data / "zsre.jsonl")}
    _, answers = answered(loaded(path, **facts), {"pretrained": str(path), **facts}, folder)
    agree(answers, edited=True)
    agree_with_the_scripts(answers, True, tmp_path)


@pytest.mark.parametrize("editor", ["none", "rome"])
def test_script_of_the_demo_model_is_the_authors(editor, tmp_path):
    """A model that knows its answers, and what twenty edits leave of it."""
    options = {"editor": editor, "n_edits": 20} if editor != "none" else {}
    _, answers = answered(loaded("demo", **options), {"pretrained": "demo", **options}, "demo")
    agree(answers, edited=editor != "none")
    agree_with_the_scripts(answers, editor != "none", tmp_path)


def test_other_model_types_count(reference, folder):
    """`--model hf` gives text alone: the tokens are counted, the results say so, and so does a wrong count."""
    path = reference / "models/gpt2-tiny"
    results = run("hf", {"pretrained": str(path)}, folder, limit=12)
    lm = loaded(path)
    wrong = total = 0
    for task in TASKS:
        known = results["configs"][f"edithurt_{task}"]["metadata"]["provenance"]["ended_known"]
        assert known == BY_COUNT
        for sample in results["samples"][f"edithurt_{task}"]:
            text = generated(lm, sample["arguments"][0][0], TASKS[task].new_tokens)
            total += 1
            if sample["ended"] != text.endswith(END_OF_TEXT):
                wrong += 1
                assert sample["ended"] == 1  # two of its tokens are one of the tokenizer's
    print(f"{wrong} of {total} ends counted wrongly")
    assert wrong < total / 2


def test_an_unknown_end_is_said(folder):
    """A model type without a tokenizer that we know of."""
    results = run("dummy", {"model": "an-api"}, folder)
    for task in TASKS:
        name = f"edithurt_{task}"
        assert results["configs"][name]["metadata"]["provenance"]["ended_known"] == UNKNOWN
        assert "ended,none" not in results["results"][name]


def test_the_response_cache_keeps_what_is_known(reference, folder, tmp_path):
    path = reference / "models/gpt2-tiny"
    cache = str(tmp_path / "cache")
    first, second = (run("edited_hf", {"pretrained": str(path)}, folder, limit=4, use_cache=cache) for _ in range(2))
    logged = [
        [
            [each["resps"], repr(each["script"]), each["ended"]]
            for samples in found["samples"].values()
            for each in samples
        ]
        for found in (first, second)
    ]
    assert logged[0] == logged[1] and len(logged[0]) == 4 * len(TASKS)
    for task in TASKS:
        assert second["configs"][f"edithurt_{task}"]["metadata"]["provenance"]["ended_known"] == EXACT


@pytest.mark.slow
def test_a_real_model(data, folder, tmp_path):
    """Real answers, which end of themselves here and there: a few documents of each task."""
    path = os.environ.get("SMOLLM2")
    if not path:
        pytest.skip("SMOLLM2=<folder> names no checkpoint of SmolLM2")
    (tmp_path / "few").mkdir()
    few = sample_of(data, tmp_path / "few", 4)
    _, answers = answered(loaded(path), {"pretrained": path}, few)
    agree(answers, edited=False, ends=("<|im_end|>",))
    agree_with_the_scripts(answers, False, tmp_path)
