"""The cases of tokens that failed once, as they lie beside the checkout, and some on SmolLM2 where that is at hand."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from transformers import AutoTokenizer

from lm_eval_edit import EditedHFLM, load_facts
from lm_eval_edit.editors._shared.rows import prompt_row
from tests.conftest import SHARED
from tests.support.harness_runs import evaluate


@pytest.fixture
def case(request, tmp_path):
    folder = SHARED / "cases" / request.param
    if not folder.is_dir():
        pytest.skip(f"the cases are not beside this checkout: ../shared/cases/{request.param}")
    return shutil.copytree(folder, tmp_path / request.param)


@pytest.fixture
def smollm2():
    folder = os.environ.get("SMOLLM2")
    if not folder:
        pytest.skip("SMOLLM2 names no folder with SmolLM2")
    return folder


@pytest.mark.parametrize("case", ["subject_trailing_space"], indirect=True)
def test_subjects_that_end_in_a_space(case, reference):
    tokenizer = AutoTokenizer.from_pretrained(reference / "models" / "llama-tiny")
    rows = [
        [prompt_row(tokenizer, fact.template, fact.subject) for fact in load_facts(case / name)]
        for name in ("with_space.jsonl", "without_space.jsonl")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("case", ["double_bos"], indirect=True)
def test_a_bos_in_the_text(case, reference):
    lm = EditedHFLM(pretrained=str(reference / "models" / "llama-tiny"), editor="none", device="cpu")
    (plain, marked) = (load_facts(case / name)[0] for name in ("facts_plain.jsonl", "facts.jsonl"))
    rows = [prompt_row(lm.tokenizer, fact.template, fact.subject) for fact in (plain, marked)]
    assert rows[0] == rows[1] and rows[1].ids == lm.tok_encode(marked.text)


@pytest.mark.parametrize("case", ["literal_braces"], indirect=True)
def test_braces_of_the_texts_own(case):
    (record,) = (json.loads(line) for line in (case / "facts.jsonl").read_text().splitlines())
    (fact,) = load_facts(case / "facts.jsonl")
    assert fact.text == record["prompt"]


@pytest.mark.parametrize("case", ["no_space_scripts"], indirect=True)
def test_objects_that_the_model_says_are_right(case, smollm2):
    """Each object is, letter for letter, what the unedited model says."""
    given = {"pretrained": smollm2, "editor": "none", "n_edits": 6, "edit_seed": None}
    given["edit_dataset"] = str(case / "facts.jsonl")
    lm = EditedHFLM(**given, device="cpu", batch_size=8)
    samples = evaluate(lm, given, ["edithurt_efficacy"])["samples"]["edithurt_efficacy"]
    assert [sample["em"] for sample in samples] == [1.0] * 6


@pytest.mark.parametrize("case", ["chat_template_space"], indirect=True)
def test_answers_behind_a_chat_template(case, smollm2):
    given = {"pretrained": smollm2, "editor": "none", "n_edits": 4, "edit_seed": None}
    given["edit_dataset"] = str(case / "facts.jsonl")
    lm = EditedHFLM(**given, device="cpu", batch_size=8)
    found = evaluate(lm, given, ["edithurt_efficacy", "edithurt_locality"], apply_chat_template=True)["samples"]
    assert [sample["em"] for sample in found["edithurt_efficacy"]] == [1.0] * 4
    assert [sample["correct"] for sample in found["edithurt_locality"]] == [1.0] * 4
