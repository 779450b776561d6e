"""The edit-quality tasks inside a chat template: every prompt in it, where edits are made that are made there."""

from __future__ import annotations

import pytest

from lm_eval_edit import EditedHFLM, Fact
from lm_eval_edit.edits.answers import answers
from lm_eval_edit.facts.chat import chat_frame, in_chat
from lm_eval_edit.facts.fact import Probe, in_clear
from tests.support.chat_models import SHAPES, save_chat
from tests.support.harness_runs import evaluate
from tests.support.tiny import write_facts

FACTS = [
    Fact("Nils", "The mother tongue of {} is", "ab", "cd", id="0", paraphrases=("{} speaks",),
         locality=(Probe("Rosa speaks", "cd"), Probe("Ida speaks", "cd"))),
    Fact("法国", "{}的首都是", "里", "巴", id="1", paraphrases=("哪里是{}的首都？",),
         locality=(Probe("日本的首都是", "巴"),)),
    Fact("باريس", "تقع {} في", "ab", "cd", id="2", question="أين تقع {}؟", paraphrases=("{} في",),
         locality=(Probe("Oslo is in", "cd"),)),
]  # fmt: skip
FT = {"layers": [1], "num_steps": 15, "lr": 5e-3, "objective_optimization": "target_new"}
TASKS = ("edithurt_editing", "edithurt_counterfact")


def world(folder, shape, **more):
    """The arguments of a model with a chat template, and of the facts."""
    facts = write_facts(folder / "facts.jsonl", FACTS)
    model = save_chat(folder / "model", SHAPES[shape][0])
    return {"pretrained": str(model), "n_edits": 3, "edit_seed": None, "edit_dataset": str(facts), **more}


@pytest.mark.parametrize("shape", ["default system", "BOS, trims", "brackets", "trailing space"])
def test_everything_is_asked_where_it_was_edited(tmp_path, shape):
    """What the task says of the edits is what their ledger says: the same texts, the same tokens, the same answers."""
    given = world(tmp_path, shape, editor="ft", edit_batch_size=3, edit_chat_template=True)
    lm = EditedHFLM(**given, edit_config=FT, device="cpu", batch_size=4)
    samples = evaluate(lm, given, ["edithurt_efficacy"], apply_chat_template=True)["samples"]["edithurt_efficacy"]
    frame, record = chat_frame(lm.tokenizer), lm.edit_record()
    assert [s["arguments"][0][0] for s in samples] == [in_chat(fact, frame).text for fact in FACTS]
    retained = record["guards"]["retained"]
    for figure in ("em", "token_acc"):
        assert sum(s[figure] for s in samples) / 3 == pytest.approx(retained[figure])
    assert record["chat_template"] == frame.record()
    assert retained["token_acc"] > record["before_each_edit"][0]["token_acc"]


@pytest.mark.parametrize("shape", ["default system", "BOS, no system", "trailing space"])
def test_every_prompt_stands_in_the_template(tmp_path, shape):
    """Also the many of CounterFact, whose document has one context for the harness; the figures are a plain loop's."""
    given = world(tmp_path, shape, editor="none")
    lm = EditedHFLM(**given, device="cpu", batch_size=4)
    results = evaluate(lm, given, TASKS, apply_chat_template=True)
    frame = chat_frame(lm.tokenizer)
    for sample in results["samples"]["edithurt_counterfact"]:
        fact = next(fact for fact in FACTS if fact.id == sample["doc"]["fact_id"])
        prompts = [fact.text, *(in_clear(p, fact.subject) for p in fact.paraphrases)]
        prompts += [probe.prompt for probe in fact.locality]
        texts = [frame.text(prompt) for prompt in prompts]
        assert list(dict.fromkeys(arguments[0] for arguments in sample["arguments"])) == texts
        new, true = (
            answers(lm.model, lm.tokenizer, texts, [o] * len(texts)) for o in (fact.target_new, fact.target_true)
        )
        likelier = [a.log_prob > b.log_prob for a, b in zip(new, true, strict=True)]
        n = 1 + len(fact.paraphrases)
        assert (sample["es"], sample["ps"]) == (likelier[0], sum(likelier[1:n]) / (n - 1))
        assert sample["ns"] == pytest.approx(sum(not each for each in likelier[n:]) / len(likelier[n:]))
    for task in ("generalization", "locality"):
        for sample in results["samples"][f"edithurt_{task}"]:
            assert all(arguments[0] == frame.text(sample["doc"]["prompt"]) for arguments in sample["arguments"])


def test_efficacy_asks_the_question_where_edits_are_made_there(tmp_path):
    given = world(tmp_path, "default system", editor="none")
    lm = EditedHFLM(**given, device="cpu")
    for chat, prompt in ((False, FACTS[2].text), (True, "أين تقع باريس؟")):
        found = evaluate(lm, given | {"edit_chat_template": chat}, ["edithurt_efficacy"])["samples"][
            "edithurt_efficacy"
        ]
        assert found[2]["doc"]["prompt"] == prompt


def test_negation_denies_what_was_edited(tmp_path):
    """`answered` is then what efficacy says of the edit, in chat as elsewhere."""
    given = world(tmp_path, "default system", editor="ft", edit_batch_size=3, edit_chat_template=True)
    lm = EditedHFLM(**given, edit_config=FT, device="cpu", batch_size=4)
    found = evaluate(lm, given, ["edithurt_efficacy", "edithurt_negation"], apply_chat_template=True)["samples"]
    em = {sample["doc"]["fact_id"]: sample["em"] for sample in found["edithurt_efficacy"]}
    denied = found["edithurt_negation"]
    assert all(sample["answered"] == em[sample["doc"]["fact_id"]] for sample in denied)
    question = "أين تقع باريس؟"
    assert [sample["doc"]["prompt"] for sample in denied if sample["doc"]["fact_id"] == "2"] == [
        f'It is not true that the answer to the question "{question}" is',
        f'The answer to the question "{question}" is not',
    ]
    assert all(sample["doc"]["plain"] == question for sample in denied if sample["doc"]["fact_id"] == "2")


def test_a_system_instruction_stands_before_every_prompt(tmp_path):
    given = world(tmp_path, "default system", editor="none")
    lm = EditedHFLM(**given, device="cpu")
    inside = "<|start|>system\nBe brief.<|end|>\n<|start|>user\n"
    for options, start in (({}, "Be brief."), ({"apply_chat_template": True}, inside)):
        found = evaluate(lm, given, TASKS, system_instruction="Be brief.", **options)["samples"]
        for task in ("efficacy", "counterfact", "generalization", "locality"):
            for sample in found[f"edithurt_{task}"]:
                assert all(arguments[0].startswith(start) for arguments in sample["arguments"])
