"""The demo world under editing: the unedited model is the plain one, single edits take, many of them hurt."""

from __future__ import annotations

import random

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import EditedHFLM, demo, edit_model, load_facts
from lm_eval_edit.editors.hyperparameters import presets
from lm_eval_edit.edits.answers import answers
from lm_eval_edit.harness.our_tasks import tasks_dir
from tests.support.tiny import same_weights, weights_of


def evaluate(lm, metadata, limit=None):
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False, metadata=metadata)
    return lm_eval.simple_evaluate(
        model=lm, tasks=["edithurt_suite"], task_manager=manager, bootstrap_iters=0, limit=limit
    )


def test_the_unedited_demo_can_do_its_tasks_and_is_plain_hf_to_the_last_digit():
    ours = evaluate(EditedHFLM(device="cpu"), {})["results"]
    theirs = HFLM(str(demo.CHECKPOINT), device="cpu", batch_size=32)
    assert evaluate(theirs, {"pretrained": str(demo.CHECKPOINT), "data_dir": "demo"})["results"] == ours
    scores = [values["score,none"] for name, values in ours.items() if name != "edithurt_suite"]
    assert len(scores) == 8 and sum(score >= 0.8 for score in scores) >= 7


def test_single_edits_take_and_leave_the_other_facts():
    model = AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    kept, facts = weights_of(model), load_facts("demo")
    chosen = random.Random(1).sample(list(facts), 62)
    edited, others = chosen[:12], chosen[12:]

    def recalled() -> float:
        found = answers(model, tokenizer, [f.text for f in others], [f" {f.target_true}" for f in others])
        return sum(answer.exact for answer in found) / len(found)

    assert recalled() >= 0.95
    taken, remembered = [], []
    for fact in edited:
        ledger = edit_model(model, tokenizer, [fact], second_moments=demo.SECOND_MOMENTS, progress=False)
        before, after = ledger.operations[0].record["before"], ledger.operations[0].record["after"]
        assert before["em"] == 0
        taken.append(after["em"])
        remembered.append(recalled())
        ledger.restore()
    assert same_weights(model, kept)
    assert sum(taken) / len(taken) >= 0.9 and sum(remembered) / len(remembered) >= 0.9


@pytest.mark.slow
def test_many_edits_hurt_what_was_not_edited():
    lm = EditedHFLM(editor="rome", n_edits=50, device="cpu")
    means = []
    for n in (0, 20, 50):
        lm.apply(n)
        means.append(evaluate(lm, {}, limit=40)["results"]["edithurt_suite"]["score,none"])
    assert means[0] - means[1] > 0.03 and means[1] - means[2] > 0.1


def test_the_presets_templates_are_the_demos():
    (preset,) = [preset for preset in presets("rome") if preset.name == "demo"]
    assert tuple(preset.options["context_templates"]) == demo.CONTEXT_TEMPLATES
