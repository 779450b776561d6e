"""Facts of a schedule that cannot all hold, and facts that stand twice: told, recorded, and edited all the same."""

from __future__ import annotations

import json
import logging

import pytest

from lm_eval_edit import Fact, edit_model
from lm_eval_edit.commands._validation import validation
from lm_eval_edit.facts.contradictions import Repetitions, repetitions
from lm_eval_edit.model import EditedHFLM
from tests.support.tiny import FACTS, tiny_model, tiny_tokenizer


def fact(name, prompt="The capital of {} is", target="Kelm", subject="Orvanta", relation=None):
    return Fact(subject, prompt, target, id=name, relation=relation)


@pytest.mark.parametrize(
    "other",
    [
        fact("b", target="Brun"),
        fact("b", prompt="The capital of Orvanta is", target=" Brun"),
        fact("b", prompt="The  capital\u00a0of Orvanta is ", target="Brun"),
        fact("b", prompt="{} capital of Orvanta is", subject="The", target="Brun"),  # one text, cut in another place
    ],
)
def test_one_prompt_with_several_objects(other):
    found = repetitions([fact("a"), fact("x", subject="Tor"), other, fact("c", target="Kelm ")])
    assert found == Repetitions(contradicting=(("a", "b", "c"),), repeated=(("a", "c"),))
    first, second = found.warnings()
    assert first.startswith("3 facts in 1 group of the schedule contradict each other") and ": a, b, c." in first
    assert "duplicates" in second and ": a, c." in second


def test_unicode_forms_of_one_prompt():
    found = repetitions(
        [fact("a", subject="Jos\u00e9"), fact("b", subject="Jose\u0301", target="Brun"), fact("c", subject="Jose")]
    )
    assert found.contradicting == (("a", "b"),) and not found.repeated


def test_one_relation_in_several_prompts_may_have_several_values():
    facts = [
        fact("a", relation="P36"),
        fact("b", prompt="{}'s capital is", target="Brun", relation="P36"),
        fact("c", prompt="{} lies in", target="Asia", relation="P30"),
        fact("d", subject="Tor", relation="P36", target="Arl"),
        fact("e", prompt="{}, whose capital is", relation="P36"),
    ]
    found = repetitions(facts)
    assert found == Repetitions(competing=(("a", "b", "e"),))
    assert "may contradict each other" in found.warnings()[0]
    assert not repetitions([facts[0], facts[2], facts[3], facts[4]]).warnings()
    assert repetitions([facts[0], fact("f", target="Brun", relation="P36")]).competing == ()


def test_many_groups_are_counted_and_the_first_named():
    facts = [fact(f"{i}{j}", subject=f"S{i}", target=f"T{j}") for i in range(5) for j in range(7)]
    (warning,) = repetitions(facts).warnings()
    assert (
        warning.startswith("35 facts in 5 groups") and "00, 01, 02, 03, 04, ...; 10" in warning and "30" not in warning
    )


def test_the_plan_the_results_and_the_log_say_it_and_editing_goes_on(tmp_path, caplog):
    records = [FACTS[0].record() | {"id": "a"}, FACTS[0].record() | {"id": "b", "target_new": "Brun"}]
    records += [FACTS[1].record() | {"id": "c"}, FACTS[1].record() | {"id": "d"}]
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(records))
    options = {"editor": "rome", "n_edits": 4, "edit_dataset": str(file), "edit_seed": None}
    options |= {"edit_layers": 1, "v_num_grad_steps": 2}
    lines, _ = validation({"pretrained": "demo", **options})
    assert "contradict each other" in " ".join(" ".join(lines).split())
    with caplog.at_level(logging.WARNING, "lm_eval_edit"):
        lm = EditedHFLM(tiny_model(), tokenizer=tiny_tokenizer(), device="cpu", **options)
    assert any("contradict each other (same prompt, different objects): a, b." in line for line in caplog.messages)
    dataset = lm.edit_record()["dataset"]
    assert (dataset["contradicting"], dataset["competing"], dataset["repeated"]) == ([["a", "b"]], [], [["c", "d"]])
    assert lm.edit_record()["n_edits"] == 4
    fewer = EditedHFLM(tiny_model(), tokenizer=tiny_tokenizer(), device="cpu", **(options | {"n_edits": 1}))
    assert fewer.edit_record()["dataset"]["contradicting"] == [], "only facts of the schedule count"


def test_editing_a_model_directly_says_it_too(caplog):
    facts = [FACTS[0], Fact(FACTS[0].subject, FACTS[0].prompt, "Brun", id="other")]
    with caplog.at_level(logging.WARNING, "lm_eval_edit"):
        options = {"v_num_grad_steps": 2, "layers": [1]}
        edit_model(tiny_model(), tiny_tokenizer(), facts, options=options, progress=False)
    assert any("contradict each other" in line for line in caplog.messages)
